/* Atomic words, clocks and small arithmetic under the core's .pxi sections.
 *
 * Every shared word is read and written through these, so that the C compiler cannot tear, cache or repeat an
 * access. Nothing here allocates, blocks or calls Python.
 *
 * Memory order: a word that publishes others is stored with release and loaded with acquire order, so a process that
 * sees it sees what was written before it. Some steps need more: they take something by a swap and then look at what
 * others have taken (`permit_take_lowered`, `tail_hedge`), and of two that do so at once one must see the other. Only
 * sequential consistency promises that, so the swaps and loads of whole words and of permits have it. On x86-64 the
 * instructions are the same; on ARM64 it rules out loads that may overtake an earlier swap (LDAPR). Counters and
 * floats that publish nothing are relaxed.
 */
#ifndef FASTROUTE_ATOMICS_H
#define FASTROUTE_ATOMICS_H

#include <stdint.h>
#include <string.h>
#include <time.h>

/* The largest time the core works with (73 years of uptime): two of them can be added without overflow. */
#define FR_TIME_MAX ((int64_t)1 << 61)

/* ---- words ------------------------------------------------------------------------------------------------- */

static inline uint64_t fr_load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }

static inline void fr_store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

/* One compare-and-swap. On failure *expected is set to the value found, so a loop need not load it again. */
static inline int fr_cas(uint64_t *word, uint64_t *expected, uint64_t desired) {
    return __atomic_compare_exchange_n(word, expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static inline uint64_t fr_add(uint64_t *word, uint64_t delta) {
    return __atomic_fetch_add(word, delta, __ATOMIC_RELAXED);
}

static inline int64_t fr_load_i64(const int64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

static inline int fr_cas_i64(int64_t *word, int64_t *expected, int64_t desired) {
    return __atomic_compare_exchange_n(word, expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static inline int32_t fr_load_i32(const int32_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }

static inline int32_t fr_add_i32(int32_t *word, int32_t delta) {
    return __atomic_fetch_add(word, delta, __ATOMIC_RELAXED);
}

static inline int fr_cas_i32(int32_t *word, int32_t *expected, int32_t desired) {
    return __atomic_compare_exchange_n(word, expected, desired, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static inline uint16_t fr_load_u16(const uint16_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }

static inline int fr_cas_u16(uint16_t *word, uint16_t expected, uint16_t desired) {
    return __atomic_compare_exchange_n(word, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* ---- a float and a 32-bit stamp (or a second float) in one word ------------------------------------------------ */

static inline float fr_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t fr_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline uint64_t fr_pack(float value, uint32_t stamp) {
    return ((uint64_t)fr_bits_of_float(value) << 32) | stamp;
}

static inline float fr_value(uint64_t word) { return fr_float_of_bits((uint32_t)(word >> 32)); }

static inline uint32_t fr_stamp(uint64_t word) { return (uint32_t)word; }

static inline double fr_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint64_t fr_bits_of_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* A value that was read from shared memory: 0, which every kind takes for unknown, if it is not 0 to most, or NaN. */
static inline double fr_within(double value, double most) { return value >= 0.0 && value <= most ? value : 0.0; }

static inline float fr_load_float(const float *place) {
    return fr_float_of_bits(__atomic_load_n((const uint32_t *)(const void *)place, __ATOMIC_RELAXED));
}

static inline void fr_store_float(float *place, float value) {
    __atomic_store_n((uint32_t *)(void *)place, fr_bits_of_float(value), __ATOMIC_RELAXED);
}

/* ---- clocks ---------------------------------------------------------------------------------------------------- */

static inline int64_t fr_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The last tick of the same clock, up to 10 ms behind and several times cheaper to read: for times of seconds. */
static inline int64_t fr_clock_coarse(void) {
#ifdef CLOCK_MONOTONIC_COARSE
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
#else
    return fr_clock();
#endif
}

/* Time stamps beside floats count milliseconds and wrap after 49 days. */
static inline uint32_t fr_millis(int64_t now) { return (uint32_t)((uint64_t)now / 1000000u); }

/* Seconds between two such stamps. Threads read the clock in another order than they swap a word, so `later` can be
 * the earlier one, by a moment: that counts as 0. A stamp further ahead is older than half the range, or something else
 * has written it: it counts as that old, so that what it belongs to has faded. */
static inline double fr_elapsed(uint32_t later, uint32_t earlier) {
    uint32_t d = later - earlier;
    if (__builtin_expect(d > 0x7fffffffu, 0)) return earlier - later < 60000u ? 0.0 : 0x7fffffffu * 1e-3;
    return (double)d * 1e-3;
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------ */

/* a + b and a * b for values that are not negative, cut to FR_TIME_MAX. */
static inline int64_t fr_sum(int64_t a, int64_t b) {
    int64_t r;
    return (__builtin_add_overflow(a, b, &r) || r > FR_TIME_MAX) ? FR_TIME_MAX : r;
}

static inline int64_t fr_product(int64_t a, int64_t b) {
    int64_t r;
    return (__builtin_mul_overflow(a, b, &r) || r > FR_TIME_MAX) ? FR_TIME_MAX : r;
}

/* 2**(-i/32) */
static const double fr_powers[32] = {
    0x1.0000000000000p+0, 0x1.f50765b6e4540p-1, 0x1.ea4afa2a490dap-1, 0x1.dfc97337b9b5fp-1,
    0x1.d5818dcfba487p-1, 0x1.cb720dcef9069p-1, 0x1.c199bdd85529cp-1, 0x1.b7f76f2fb5e47p-1,
    0x1.ae89f995ad3adp-1, 0x1.a5503b23e255dp-1, 0x1.9c49182a3f090p-1, 0x1.93737b0cdc5e5p-1,
    0x1.8ace5422aa0dbp-1, 0x1.82589994cce13p-1, 0x1.7a11473eb0187p-1, 0x1.71f75e8ec5f74p-1,
    0x1.6a09e667f3bcdp-1, 0x1.6247eb03a5585p-1, 0x1.5ab07dd485429p-1, 0x1.5342b569d4f82p-1,
    0x1.4bfdad5362a27p-1, 0x1.44e086061892dp-1, 0x1.3dea64c123422p-1, 0x1.371a7373aa9cbp-1,
    0x1.306fe0a31b715p-1, 0x1.29e9df51fdee1p-1, 0x1.2387a6e756238p-1, 0x1.1d4873168b9aap-1,
    0x1.172b83c7d517bp-1, 0x1.11301d0125b51p-1, 0x1.0b5586cf9890fp-1, 0x1.059b0d3158574p-1,
};

/* a / d for 0 <= a <= FR_TIME_MAX by the reciprocal 2**64 / d: a multiplication where the division takes 20 cycles.
 * The product is below the quotient by at most one, which the remainder shows. */
static inline uint64_t fr_reciprocal(uint64_t d) { return UINT64_MAX / d; }

static inline uint64_t fr_divide(uint64_t a, uint64_t d, uint64_t reciprocal) {
    uint64_t q = (uint64_t)(((unsigned __int128)a * reciprocal) >> 64);
    return q + (a - q * d >= d);
}

/* e**-x for x >= 0, to 1e-8 of its value; 0 from e**-700 on. Inlined, it takes a third of the time of exp().
 *
 * With x = (32 k + j + f) ln2/32, f in [0, 1): 2**-k from the exponent, 2**(-j/32) from the table, the rest by four
 * terms of the series. */
static inline double fr_decay(double x) {
    double t, r;
    int64_t i;
    uint64_t bits;
    if (!(x < 700.0)) return 0.0;
    t = x * (32 * 1.4426950408889634);
    i = (int64_t)t;
    r = (t - (double)i) * (0.6931471805599453 / 32);
    r = (1.0 - r) + r * r * (0.5 - r * (1.0 / 6));
    memcpy(&bits, &fr_powers[i & 31], sizeof bits);
    bits -= (uint64_t)(i >> 5) << 52;
    memcpy(&t, &bits, sizeof t);
    return t * r;
}

/* All bytes of a word, taken together by exclusive or: one changed byte always changes it. */
static inline uint64_t fr_fold(uint64_t word) {
    word ^= word >> 32;
    word ^= word >> 16;
    return (word ^ word >> 8) & 0xff;
}

/* A 64-bit mix (the finaliser of splitmix64): equal inputs give equal outputs, near inputs far ones. */
static inline uint64_t fr_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A fraction in [0, 1) of such a mix. */
static inline double fr_fraction(uint64_t mixed) { return (double)(mixed >> 11) * 0x1p-53; }

/* An even choice among n (n > 0) by such a mix. */
static inline uint32_t fr_choice(uint64_t mixed, uint32_t n) { return (uint32_t)(((mixed >> 32) * n) >> 32); }

/* ceil((a*p + b*q) / 1e6) for values that are not negative, cut to INT64_MAX. Rounded up, so that a budget is never
 * charged less than the price. */
static inline int64_t fr_price(int64_t a, int64_t p, int64_t b, int64_t q) {
    int64_t x, y, sum;
    if (!__builtin_mul_overflow(a, p, &x) && !__builtin_mul_overflow(b, q, &y) && !__builtin_add_overflow(x, y, &sum))
        return sum / 1000000 + (sum % 1000000 != 0);
    unsigned __int128 wide = (unsigned __int128)a * (uint64_t)p + (unsigned __int128)b * (uint64_t)q;
    wide = (wide + 999999) / 1000000;
    return wide > (unsigned __int128)INT64_MAX ? INT64_MAX : (int64_t)wide;
}

#endif
