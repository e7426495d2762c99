/* The text scan's kernel for x86-64 processors with AVX2, found at run time; scan.h has the one for all others.
 *
 * It counts and matches in one pass. Matching is a filter before a check. The patterns are in eight buckets. A table
 * look-up on the two nibbles of a byte, for 32 bytes at once, gives the buckets for which the byte can be the first
 * character; another look-up does so for the second, and so on to the fourth. Where all four agree (and, for patterns
 * that begin with a word, where the byte before is not part of one) the automaton `fixed` is walked from there. The
 * filter may let too much pass, never too little. A bucket whose patterns have all been found lets nothing pass.
 *
 * For a text in which checking would take longer than walking the automaton over all of it, the caller walks the
 * automaton for the rest of the request, so the time stays linear whatever the text.
 */
#ifndef FASTROUTE_SCAN_AVX2_H
#define FASTROUTE_SCAN_AVX2_H

#include <immintrin.h>

#include "scan_tables.h"

#define SCAN_AVX2 __attribute__((target("avx2,popcnt,bmi,lzcnt")))
#define SCAN_AVX2_INLINE static inline SCAN_AVX2 __attribute__((always_inline))

/* Kinds of byte: bits that are set in both tables below at the byte's two nibbles. */
enum {
    SCAN_IS_SPACE = 0x0F,                /* four bits, as white space is four rectangles of nibbles */
    SCAN_IS_WORD = 0xE0,                 /* ASCII letters (two bits) and digits */
    SCAN_IS_DIGIT = 0x80                 /* the sign bit, which can be asked for without a mask */
};

/* Which patterns to filter for, fixed when compiled: those that may begin within a word, and those that may not. */
enum { SCAN_INNER = 1, SCAN_OUTER = 2 };

static const uint8_t scan_kind_low[16] = {
    0xC4, 0xE0, 0xE0, 0xE0, 0xE0, 0xE8, 0xE0, 0xE0, 0xE0, 0xE1, 0x61, 0x21, 0x23, 0x23, 0x22, 0x22,
};
static const uint8_t scan_kind_high[16] = {
    0x01, 0x02, 0x04, 0x80, 0x20, 0x40, 0x20, 0x40, 0x08, 0, 0x04, 0, 0, 0, 0, 0,
};

SCAN_AVX2_INLINE __m256i scan_table16(const uint8_t *bytes)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes));
}

SCAN_AVX2_INLINE uint64_t scan_zeros(__m256i v)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256()));
}

SCAN_AVX2_INLINE int64_t scan_sum32(__m256i bytes)
{
    __m256i sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

/* For each of the 32 bytes at `text`, the buckets for which it can be the character that `low` and `high` are about. */
SCAN_AVX2_INLINE __m256i scan_possible(const uint8_t *text, __m256i low, __m256i high)
{
    const __m256i nibble = _mm256_set1_epi8(0x0F);
    __m256i v = _mm256_loadu_si256((const __m256i *)text);
    __m256i above = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
    return _mm256_and_si256(_mm256_shuffle_epi8(low, _mm256_and_si256(v, nibble)), _mm256_shuffle_epi8(high, above));
}

/* Walks the automaton from one place on until nothing can match any more; returns the number of steps. */
static inline uint32_t scan_check(const scan_table *table, const uint8_t *text, uint64_t *found)
{
    const uint8_t *at = text;
    uintptr_t row = table->fixed.start[table->word[at[-1]]];
    do {
        row = scan_step(row, table->column[*at++]);
        *found |= scan_matched(row);
    } while (row != table->fixed.first);
    return (uint32_t)(at - text);
}

SCAN_AVX2_INLINE uint32_t scan_vectors_as(scan_pass *pass, const uint8_t *text, uint32_t length, int filter)
{
    const scan_table *table = pass->table;
    const __m256i nibble = _mm256_set1_epi8(0x0F), zero = _mm256_setzero_si256();
    const __m256i kind_low = scan_table16(scan_kind_low), kind_high = scan_table16(scan_kind_high);
    const __m256i low1 = scan_table16(table->low[1]), high1 = scan_table16(table->high[1]);
    const __m256i low2 = scan_table16(table->low[2]), high2 = scan_table16(table->high[2]);
    const __m256i low3 = scan_table16(table->low[3]), high3 = scan_table16(table->high[3]);
    const __m256i low0 = scan_table16(table->low[0]);
    const __m256i inner = _mm256_set1_epi8((char)table->inner);
    __m256i high0 = scan_table16(table->high[0]), digits = zero, questions = zero, newlines = zero;
    uint64_t space_before = 0, outside_before = 0, words = 0, found = pass->counts->found;
    uint32_t steps = 0;
    const uint32_t most = length / 4;
    uint8_t before = text[-1], live = 0;
    if (filter) {
        for (int k = 0; k < 8; k++)
            live |= (uint8_t)((table->bucket[k] & ~found ? 1 : 0) << k);
        high0 = _mm256_and_si256(high0, _mm256_set1_epi8((char)live));
    }
    before = scan_kind_low[before & 15] & scan_kind_high[before >> 4];
    space_before = (before & SCAN_IS_SPACE) != 0;
    outside_before = (before & SCAN_IS_WORD) == 0;
    for (uint32_t i = 0; i < length; i += SCAN_STEP) {
        uint64_t solid = 0, outside = 0, tick = 0, no_inner = 0, no_outer = 0;
#pragma GCC unroll 2
        for (int k = 0; k < SCAN_STEP; k += 32) {
            const uint8_t *at = text + i + k;
            __m256i v = _mm256_loadu_si256((const __m256i *)at);
            __m256i below = _mm256_and_si256(v, nibble);
            __m256i above = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
            __m256i kind =
                _mm256_and_si256(_mm256_shuffle_epi8(kind_low, below), _mm256_shuffle_epi8(kind_high, above));
            solid |= scan_zeros(_mm256_and_si256(kind, _mm256_set1_epi8(SCAN_IS_SPACE))) << k;
            digits = _mm256_sub_epi8(digits, _mm256_cmpgt_epi8(zero, kind));
            questions = _mm256_sub_epi8(questions, _mm256_cmpeq_epi8(v, _mm256_set1_epi8('?')));
            newlines = _mm256_sub_epi8(newlines, _mm256_cmpeq_epi8(v, _mm256_set1_epi8('\n')));
            tick |= (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8('`'))) << k;
            if (filter) {
                __m256i hits =
                    _mm256_and_si256(_mm256_shuffle_epi8(low0, below), _mm256_shuffle_epi8(high0, above));
                hits = _mm256_and_si256(hits, scan_possible(at + 1, low1, high1));
                hits = _mm256_and_si256(hits, scan_possible(at + 2, low2, high2));
                hits = _mm256_and_si256(hits, scan_possible(at + 3, low3, high3));
                if (filter & SCAN_INNER)
                    no_inner |= scan_zeros(_mm256_and_si256(hits, inner)) << k;
                if (filter & SCAN_OUTER) {
                    no_outer |= scan_zeros(_mm256_andnot_si256(inner, hits)) << k;
                    outside |= scan_zeros(_mm256_and_si256(kind, _mm256_set1_epi8((char)SCAN_IS_WORD))) << k;
                }
            }
        }
        words += (uint64_t)__builtin_popcountll(solid & (~solid << 1 | space_before));
        space_before = ~solid >> 63;
        if (__builtin_expect((tick | pass->ticks) != 0, 0))
            scan_fences(pass, tick);
        if (filter) {
            uint64_t hits = filter & SCAN_INNER ? ~no_inner : 0;
            if (filter & SCAN_OUTER)
                hits |= ~no_outer & (outside << 1 | outside_before);
            outside_before = outside >> 63;
            for (; hits; hits &= hits - 1)
                steps += 4 + scan_check(table, text + i + __builtin_ctzll(hits), &found);
            /* Checking has cost enough: let nothing pass in the rest of the block, which is only counted. The caller
             * walks the automaton over all of it. */
            if (__builtin_expect(steps > most, 0))
                high0 = zero;
        }
    }
    pass->counts->found |= found;
    pass->counts->words += (int64_t)words;
    pass->counts->digits += scan_sum32(digits);
    pass->counts->question_marks += scan_sum32(questions);
    pass->counts->newlines += scan_sum32(newlines);
    return steps > most;
}

#define SCAN_DEFINE_VECTORS(NAME, FILTER)                                                                   \
    static SCAN_AVX2 __attribute__((noinline)) uint32_t NAME(scan_pass *pass, const uint8_t *text, uint32_t length) \
    {                                                                                                       \
        return scan_vectors_as(pass, text, length, FILTER);                                                 \
    }

SCAN_DEFINE_VECTORS(scan_vectors_count, 0)
SCAN_DEFINE_VECTORS(scan_vectors_inner, SCAN_INNER)
SCAN_DEFINE_VECTORS(scan_vectors_outer, SCAN_OUTER)
SCAN_DEFINE_VECTORS(scan_vectors_both, SCAN_INNER | SCAN_OUTER)

/* Counts and matches as scan_count and scan_walk do, by vectors. Returns whether the caller must walk the automaton
 * over these bytes, because checking took too long. */
static uint32_t scan_vectors(scan_pass *pass, const uint8_t *text, uint32_t length)
{
    uint8_t inner = pass->table->inner, outer = pass->table->used & ~inner;
    uint32_t exhausted;
    if (!(~pass->counts->found & pass->table->all)) {
        scan_vectors_count(pass, text, length);
        return 0;
    }
    if (pass->dense)
        exhausted = 1, scan_vectors_count(pass, text, length);
    else if (!inner)
        exhausted = scan_vectors_outer(pass, text, length);
    else if (!outer)
        exhausted = scan_vectors_inner(pass, text, length);
    else
        exhausted = scan_vectors_both(pass, text, length);
    if (exhausted)
        pass->dense = 1;
    return exhausted;
}

#endif
