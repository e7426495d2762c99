/* The text scan: counts and pattern matches in one linear pass over the strings' own memory.
 *
 * Here: narrowing text of any width to one byte a character, counting, and running the compiled tables. Making the
 * tables, reading messages and applying rules to the counts is in scan.pxi.
 *
 * All texts of a request form one stream of bytes in which a line feed ends each text. A line feed is white
 * space, is no part of a word, is in no pattern and is not matched by a wildcard, so no match and no word can reach
 * across two texts. The stream passes in blocks through a small window that stays in the first-level cache; no
 * text is copied as a whole. The window ends in padding, so no kernel needs a case for a text's last few bytes
 * and none reads outside it.
 *
 * A character above U+00FF becomes a byte that behaves the same: a letter or digit of any script one Latin-1
 * letter (decimal digits another), white space a no-break space, all else a section sign; and the four that equal
 * an ASCII letter when case is ignored (U+0130, U+0131, U+017F, U+212A) become that letter. Patterns are ASCII, so
 * this loses nothing.
 */
#ifndef FASTROUTE_SCAN_H
#define FASTROUTE_SCAN_H

#include "scan_tables.h"
#include "scan_search.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include "scan_avx2.h"
#define SCAN_HAS_AVX2 __builtin_cpu_supports("avx2")
#else
#define SCAN_HAS_AVX2 0
#endif

/* --- narrowing ----------------------------------------------------------------------------------------- */

/* Narrows 16 characters if none of them is above U+00FF; returns whether it did. */
static inline int scan_pack2(uint8_t *to, const Py_UCS2 *from)
{
#if defined(__SSE2__)
    __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 8));
    __m128i high = _mm_srli_epi16(_mm_or_si128(a, b), 8);
    if (_mm_movemask_epi8(_mm_cmpeq_epi16(high, _mm_setzero_si128())) != 0xFFFF)
        return 0;
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi16(a, b));
#else
    Py_UCS2 seen = 0;
    for (int k = 0; k < 16; k++)
        seen |= from[k];
    if (seen >= 0x100)
        return 0;
    for (int k = 0; k < 16; k++)
        to[k] = (uint8_t)from[k];
#endif
    return 1;
}

static inline int scan_pack4(uint8_t *to, const Py_UCS4 *from)
{
#if defined(__SSE2__)
    __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 4));
    __m128i c = _mm_loadu_si128((const __m128i *)(from + 8)), d = _mm_loadu_si128((const __m128i *)(from + 12));
    __m128i high = _mm_srli_epi32(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d)), 8);
    if (_mm_movemask_epi8(_mm_cmpeq_epi32(high, _mm_setzero_si128())) != 0xFFFF)
        return 0;
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
#else
    Py_UCS4 seen = 0;
    for (int k = 0; k < 16; k++)
        seen |= from[k];
    if (seen >= 0x100)
        return 0;
    for (int k = 0; k < 16; k++)
        to[k] = (uint8_t)from[k];
#endif
    return 1;
}

#define SCAN_DEFINE_COPY(NAME, PACK, UNIT)                              \
    static void NAME(uint8_t *to, const UNIT *from, size_t n)           \
    {                                                                   \
        size_t i = 0;                                                   \
        for (; i + 16 <= n; i += 16)                                    \
            if (!PACK(to + i, from + i))                                \
                for (int k = 0; k < 16; k++)                            \
                    to[i + k] = scan_narrow(from[i + k]);               \
        for (; i < n; i++)                                              \
            to[i] = scan_narrow(from[i]);                               \
    }

SCAN_DEFINE_COPY(scan_copy2, scan_pack2, Py_UCS2)
SCAN_DEFINE_COPY(scan_copy4, scan_pack4, Py_UCS4)

/* Bytes that UTF-8 needs beyond one a character. Summed in runs of 128, which fit in the narrow sums: so the compiler
 * can add many characters with one instruction. */
static int64_t scan_utf8_extra(int kind, const void *data, size_t n)
{
    int64_t extra = 0;
    for (size_t i = 0; i < n;) {
        size_t end = n - i < 128 ? n : i + 128;
        if (kind == 1) {
            const uint8_t *text = data;
            uint8_t sum = 0;
            for (; i < end; i++)
                sum += text[i] >> 7;
            extra += sum;
        } else if (kind == 2) {
            const Py_UCS2 *text = data;
            uint16_t sum = 0;
            for (; i < end; i++)
                sum += (text[i] >= 0x80) + (text[i] >= 0x800);
            extra += sum;
        } else {
            const Py_UCS4 *text = data;
            uint32_t sum = 0;
            for (; i < end; i++)
                sum += (text[i] >= 0x80) + (text[i] >= 0x800) + (text[i] >= 0x10000);
            extra += sum;
        }
    }
    return extra;
}

/* --- kernels: counting --------------------------------------------------------------------------------- */

typedef uint8_t scan_v16 __attribute__((vector_size(16)));
typedef uint64_t scan_v2 __attribute__((vector_size(16)));

/* A bit for each byte that is 0xFF in a vector of 0 and 0xFF. */
static inline uint64_t scan_bits(scan_v16 mask)
{
#if defined(__SSE2__)
    return (uint64_t)(uint32_t)_mm_movemask_epi8((__m128i)mask);
#elif defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    scan_v2 half = (scan_v2)mask & 0x8080808080808080u;
    return ((half[0] >> 7) * 0x0102040810204080u >> 56) | ((half[1] >> 7) * 0x0102040810204080u >> 56) << 8;
#else
    uint64_t bits = 0;
    for (int k = 0; k < 16; k++)
        bits |= (uint64_t)(mask[k] & 1) << k;
    return bits;
#endif
}

static inline int64_t scan_sum(scan_v16 bytes)
{
#if defined(__SSE2__)
    __m128i sums = _mm_sad_epu8((__m128i)bytes, _mm_setzero_si128());
    return _mm_cvtsi128_si64(sums) + _mm_cvtsi128_si64(_mm_unpackhi_epi64(sums, sums));
#else
    int64_t sum = 0;
    for (int k = 0; k < 16; k++)
        sum += bytes[k];
    return sum;
#endif
}

/* Counts in `length` bytes, a multiple of SCAN_STEP and at most SCAN_BLOCK, beyond which the byte-wide sums would
 * overflow. White space is what str.split takes for it: 9-13, 28-32, 0x85, 0xA0. */
static void scan_count(scan_pass *pass, const uint8_t *text, uint32_t length)
{
    scan_v16 digits = {0}, questions = {0}, newlines = {0};
    uint64_t before = 0, words = 0;
    uint8_t first = text[-1];
    before = (first >= 9 && first <= 13) || (first >= 28 && first <= 32) || first == 0x85 || first == 0xA0;
    for (uint32_t i = 0; i < length; i += SCAN_STEP) {
        uint64_t space = 0, tick = 0;
        for (int k = 0; k < 4; k++) {
            scan_v16 v;
            memcpy(&v, text + i + 16 * k, 16);
            scan_v16 blank = (scan_v16)((scan_v16)(v - 9) <= 4) | (scan_v16)((scan_v16)(v - 28) <= 4) |
                             (scan_v16)(v == 0x85) | (scan_v16)(v == 0xA0);
            space |= scan_bits(blank) << 16 * k;
            tick |= scan_bits((scan_v16)(v == '`')) << 16 * k;
            digits -= (scan_v16)((scan_v16)(v - '0') <= 9);
            questions -= (scan_v16)(v == '?');
            newlines -= (scan_v16)(v == '\n');
        }
        words += scan_popcount(~space & (space << 1 | before));
        before = space >> 63;
        if (tick | pass->ticks)
            scan_fences(pass, tick);
    }
    pass->counts->words += (int64_t)words;
    pass->counts->digits += scan_sum(digits);
    pass->counts->question_marks += scan_sum(questions);
    pass->counts->newlines += scan_sum(newlines);
}

/* --- kernels: matching --------------------------------------------------------------------------------- */

/* Finds every pattern that begins in `length` bytes, a multiple of SCAN_STEP; reads `reach` bytes more. A step has to
 * wait for the load of the one before it, so four parts of the text are walked side by side to use that time. Each
 * starts with nothing matched and goes on past its end far enough to see what began within it.
 *
 * Most texts contain few matches, and then a branch that is rarely taken is cheapest. After a block that is full of
 * them, `rich` does without a branch, so that no text makes the scan slower than others do. */
static inline __attribute__((always_inline)) uint32_t scan_walk_as(scan_pass *pass, const uint8_t *text,
                                                                   uint32_t length, int rich)
{
    const scan_table *table = pass->table;
    const uint8_t *column = table->column;
    const size_t part = length / SCAN_STREAMS;
    const uint8_t *t0 = text, *t1 = t0 + part, *t2 = t1 + part, *t3 = t2 + part;
    const uint8_t *end = t1 + table->reach;
    uintptr_t s0 = table->free.start[table->word[t0[-1]]], s1 = table->free.start[table->word[t1[-1]]];
    uintptr_t s2 = table->free.start[table->word[t2[-1]]], s3 = table->free.start[table->word[t3[-1]]];
    uint64_t found = 0;
    uint32_t hits = 0;
    for (; t0 < end; t0 += 4, t1 += 4, t2 += 4, t3 += 4) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            s0 = scan_step(s0, column[t0[k]]);
            s1 = scan_step(s1, column[t1[k]]);
            s2 = scan_step(s2, column[t2[k]]);
            s3 = scan_step(s3, column[t3[k]]);
            if (rich || __builtin_expect(scan_is_match(s0 | s1 | s2 | s3), 0)) {
                found |= scan_matched(s0) | scan_matched(s1) | scan_matched(s2) | scan_matched(s3);
                hits++;
            }
        }
    }
    pass->counts->found |= found;
    return hits;
}

static __attribute__((noinline)) void scan_walk(scan_pass *pass, const uint8_t *text, uint32_t length)
{
    if (pass->rich)
        scan_walk_as(pass, text, length, 1);
    else
        pass->rich = scan_walk_as(pass, text, length, 0) > length / 64;
}

/* --- the window ---------------------------------------------------------------------------------------- */

static void scan_examine(scan_pass *pass, const uint8_t *text, uint32_t length)
{
#ifdef FASTROUTE_SCAN_AVX2_H
    if (pass->table->vectors) {
        if (scan_vectors(pass, text, length))
            scan_walk(pass, text, length);
        return;
    }
#endif
    scan_count(pass, text, length);
    if (~pass->counts->found & pass->table->all)
        scan_walk(pass, text, length);
}

/* Adds bytes to the window; examines a block when it is there with the look-ahead that its last byte needs. */
static void scan_put(scan_pass *pass, int kind, const void *data, size_t n)
{
    const uint32_t full = 1 + SCAN_BLOCK + pass->table->reach;
    const char *from = data;
    while (n) {
        size_t room = full - pass->used;
        size_t take = n < room ? n : room;
        uint8_t *to = pass->window + pass->used;
        if (kind == 1)
            memcpy(to, from, take);
        else if (kind == 2)
            scan_copy2(to, (const Py_UCS2 *)from, take);
        else
            scan_copy4(to, (const Py_UCS4 *)from, take);
        from += take * (size_t)kind;
        n -= take;
        pass->used += (uint32_t)take;
        if (pass->used == full) {
            scan_examine(pass, pass->window + 1, SCAN_BLOCK);
            memmove(pass->window, pass->window + SCAN_BLOCK, full - SCAN_BLOCK);
            pass->used = full - SCAN_BLOCK;
        }
    }
}

static inline void scan_end_text(scan_pass *pass)
{
    scan_put(pass, 1, "\n", 1);
    pass->added++;
}

/* The caller passes counts of 0. */
static void scan_begin(scan_pass *pass, const scan_table *table, scan_counts *counts)
{
    /* Field by field, and not the window: clearing more than is needed would be a good part of a short scan. */
    pass->table = table;
    pass->counts = counts;
    pass->left = SCAN_WHOLE;
    pass->added = 0;
    pass->ticks = 0;
    pass->dense = pass->rich = 0;
    pass->window[0] = '\n';
    pass->used = 1;
}

/* One text of a message. Returns -1 with an exception set if the string cannot be read. */
static int scan_text(scan_pass *pass, PyObject *text, int in_scope)
{
    size_t n;
    int kind;
    const char *data;
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(text) < 0)
        return -1;
#endif
    n = (size_t)PyUnicode_GET_LENGTH(text);
    kind = (int)PyUnicode_KIND(text);
    data = PyUnicode_DATA(text);
    pass->counts->chars += (int64_t)n;
    pass->counts->utf8 += (int64_t)n;
    if (!PyUnicode_IS_ASCII(text))
        pass->counts->utf8 += scan_utf8_extra(kind, data, n);
    if (!in_scope || !n)
        return 0;
    pass->counts->scope_chars += (int64_t)n;
    if (__builtin_expect(pass->table->search_count, 0))
        scan_search_text(pass, kind, data, n, (int64_t)n > pass->left && n > 2 * SCAN_END);
    if ((int64_t)n > pass->left && n > 2 * SCAN_END) {
        pass->counts->truncated = 1;
        scan_put(pass, kind, data, SCAN_END);
        scan_end_text(pass);
        scan_put(pass, kind, data + (n - SCAN_END) * (size_t)kind, SCAN_END);
        n = 2 * SCAN_END;
    } else {
        scan_put(pass, kind, data, n);
    }
    pass->left -= (int64_t)n;
    scan_end_text(pass);
    return 0;
}

/* Examines what is left in the window. */
static void scan_finish(scan_pass *pass)
{
    uint32_t rest = pass->used - 1;
    uint32_t length = (rest + SCAN_STEP - 1) / SCAN_STEP * SCAN_STEP;
    uint8_t *text = pass->window + 1;
    /* Line feeds, which match nothing; those that are counted are subtracted again below. */
    memset(text + rest, '\n', length - rest + pass->table->reach + SCAN_STEP);
    pass->added += length - rest;
    while (length) {
        uint32_t part = length < SCAN_BLOCK ? length : SCAN_BLOCK;
        scan_examine(pass, text, part);
        text += part;
        length -= part;
    }
    pass->counts->newlines -= pass->added;
}

#endif
