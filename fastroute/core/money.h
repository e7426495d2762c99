/* A compare-and-swap of two neighbouring words, and a way to die between any two writes, for money.pxi.
 *
 * x86-64 and 64-bit ARM have a 16-byte compare-and-swap, written here in assembler: the compilers' builtin may call a
 * library that takes a lock, which does not work across processes. Other processors use the builtin where it is an
 * instruction. Where there is none FR_HAS_PAIRS is 0 and no counter can be made.
 */
#ifndef FASTROUTE_MONEY_H
#define FASTROUTE_MONEY_H

#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* A number and the mark of the change that made it. Aligned to 16 bytes by its place in a cell. */
typedef struct {
    uint64_t value;
    uint64_t mark;
} fr_pair;

#if defined(__x86_64__)
#define FR_HAS_PAIRS 1

static inline int fr_cas_pair(fr_pair *pair, uint64_t value, uint64_t mark, uint64_t new_value, uint64_t new_mark) {
    unsigned char done;
    __asm__ __volatile__("lock cmpxchg16b %1\n\tsete %0"
                         : "=q"(done), "+m"(*pair), "+a"(value), "+d"(mark)
                         : "b"(new_value), "c"(new_mark)
                         : "memory", "cc");
    return done;
}

#elif defined(__aarch64__)
#define FR_HAS_PAIRS 1

/* May fail although the pair is as expected (the processor lost its reservation of the line): callers try again. */
static inline int fr_cas_pair(fr_pair *pair, uint64_t value, uint64_t mark, uint64_t new_value, uint64_t new_mark) {
    uint64_t seen_value, seen_mark;
    uint32_t failed = 1;
    __asm__ __volatile__("ldaxp %0, %1, %3\n\t"
                         "cmp %0, %4\n\t"
                         "ccmp %1, %5, #0, eq\n\t"
                         "b.ne 1f\n\t"
                         "stlxp %w2, %6, %7, %3\n\t"
                         "b 2f\n"
                         "1:\n\t"
                         "clrex\n"
                         "2:\n\t"
                         : "=&r"(seen_value), "=&r"(seen_mark), "+&r"(failed), "+Q"(*pair)
                         : "r"(value), "r"(mark), "r"(new_value), "r"(new_mark)
                         : "memory", "cc");
    return !failed;
}

#elif defined(__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16)
#define FR_HAS_PAIRS 1

static inline int fr_cas_pair(fr_pair *pair, uint64_t value, uint64_t mark, uint64_t new_value, uint64_t new_mark) {
    fr_pair before = {value, mark}, after = {new_value, new_mark};
    unsigned __int128 expected, desired;
    memcpy(&expected, &before, 16);
    memcpy(&desired, &after, 16);
    return __sync_bool_compare_and_swap((unsigned __int128 *)(void *)pair, expected, desired);
}

#else
#define FR_HAS_PAIRS 0

static inline int fr_cas_pair(fr_pair *pair, uint64_t value, uint64_t mark, uint64_t new_value, uint64_t new_mark) {
    (void)pair, (void)value, (void)mark, (void)new_value, (void)new_mark;
    return 0;
}

#endif

/* A check word. The factors are odd, so a change of one field alone always changes the sum. */
static inline uint64_t fr_seal(uint64_t turn, uint64_t amount, uint64_t lease, uint64_t purse, uint64_t stamp) {
    return turn * 0x9e3779b97f4a7c15u + amount * 0xbf58476d1ce4e5b9u + lease * 0x94d049bb133111ebu +
           purse * 0xd6e8feb86659fd93u + stamp * 0xff51afd7ed558ccdu;
}

/* Writes left until this process kills itself; 0: never. For tests only: see die_after in money.pxi. */
static int64_t fr_writes_left = 0;

static inline void fr_about_to_write(void) {
    if (__builtin_expect(fr_writes_left > 0, 0) && --fr_writes_left == 0) kill(getpid(), SIGKILL);
}

static inline void fr_die_after(int64_t writes) { fr_writes_left = writes; }

#endif
