/* What the kernels of the text scan share: the structures, a character as a byte, a step of an automaton, and runs of
 * back-ticks. scan.h combines the kernels.
 */
#ifndef FASTROUTE_SCAN_TABLES_H
#define FASTROUTE_SCAN_TABLES_H

#include <Python.h>
#include <stdint.h>
#include <string.h>

enum {
    SCAN_STEP = 64,                      /* bytes that a kernel takes at a time */
    SCAN_BLOCK = 63 * SCAN_STEP,         /* bytes between two sums: 255 16-byte vectors would overflow a byte */
    SCAN_LONGEST = 256,                  /* characters in the longest pattern */
    SCAN_STREAMS = 4,                    /* places of a block that the table-driven kernel walks at once */
    SCAN_WHOLE = 1 << 20,                /* characters of a request that are examined whole ... */
    SCAN_END = 8192,                     /* ... beyond which only so many of each end of a long text are */
    SCAN_SPAN = 4096,                    /* bytes that a search takes at a time */
    SCAN_MARK = 16,                      /* bytes between two places where its streams can be joined */
    SCAN_WINDOW = 1 + SCAN_BLOCK + 2 * SCAN_LONGEST + 2 * SCAN_STEP
};

/* One automaton. A row of cells begins with the 64-bit set of patterns that have matched on arrival; then comes, for
 * every class of byte, the address of the next row, so that a step is two loads and nothing else. The address of a
 * row whose set is not empty is an odd multiple of 8, that of any other an even one: whether anything matched is seen
 * from the address, without a load. */
typedef struct {
    uint64_t *memory;                    /* of all rows; they begin at its first multiple of 16 bytes */
    uintptr_t first;                     /* the first row */
    uintptr_t start[2];                  /* row to begin with after a character outside, inside a word */
} scan_dfa;

/* An automaton for regular patterns, whose matches may have any length and may depend on the ends of a text. Each text
 * is a search of its own; the row reached after its last character shows what is found there. */
typedef struct {
    scan_dfa dfa;
    uintptr_t begin;                     /* row to begin a text with */
    uintptr_t sink;                      /* row from which nothing can be found any more; 0: there is none */
    uint64_t all;                        /* its patterns */
} scan_search;

/* How the searches see the characters of a text. */
typedef struct {
    uint8_t column[256];                 /* cell of a row that stands for a byte */
    uint8_t word[256];                   /* whether a byte is part of a word */
} scan_alphabet;

/* A rule set's patterns, compiled; never written after it is made. */
typedef struct {
    scan_dfa free;                       /* finds matches that begin anywhere */
    scan_dfa fixed;                      /* only those that begin where it starts; first row: none is left */
    uint8_t column[256];                 /* cell of a row that stands for a byte */
    uint8_t word[256];                   /* whether a byte is part of a word */
    uint32_t reach;                      /* characters of the longest pattern, up to a multiple of 4; 0: no patterns */
    uint64_t all;                        /* a bit for every pattern of these two; searches have bits of their own */
    scan_search *searches;               /* the automata of regular patterns */
    int search_count;
    uint8_t end;                         /* their cell for the end of a text */
    uint8_t above[256];                  /* their cell for what a character above U+00FF is narrowed to */
    scan_alphabet bytes, columns;        /* of texts up to U+00FF, and of texts turned into columns before */
    int vectors;                         /* whether the AVX2 kernel is to be used; the rest is for it */
    uint64_t bucket[8];                  /* patterns of each bucket */
    uint8_t used;                        /* buckets that hold patterns */
    uint8_t inner;                       /* those whose patterns may begin within a word */
    uint8_t low[4][16], high[4][16];     /* buckets possible by the nibbles of a pattern's first four characters */
} scan_table;

/* What a scan has counted. */
typedef struct {
    int64_t chars;                       /* code points of every message's text */
    int64_t utf8;                        /* bytes of it as UTF-8, a lone surrogate as three */
    int64_t scope_chars;                 /* code points in scope; the fields below are of these only */
    int64_t words;                       /* len(text.split()), summed over texts */
    int64_t digits;                      /* 0-9 */
    int64_t question_marks;              /* ? */
    int64_t newlines;                    /* line feeds */
    int64_t code_fences;                 /* ``` */
    uint64_t found;                      /* patterns, a bit each */
    int truncated;                       /* whether some text was examined at its ends only */
    /* Hashed word features belong here: a word's hash is known where its end is counted. */
} scan_counts;

/* A scan under way. */
typedef struct {
    const scan_table *table;
    scan_counts *counts;                 /* in the result itself, which saves copying them */
    int64_t left;                        /* characters that may still be examined whole */
    int64_t added;                       /* line feeds in the window that were not in the texts */
    uint32_t used;                       /* bytes of the window in use; byte 0 has been examined already */
    uint32_t ticks;                      /* back-ticks in the run that reaches up to here, modulo 3 */
    int dense;                           /* there are so many near-matches that the filter costs more than it saves */
    int rich;                            /* there are so many matches that a branch for each costs more */
    uint8_t window[SCAN_WINDOW];
} scan_pass;

/* --- characters above U+00FF --------------------------------------------------------------------------- */

enum { SCAN_LETTER = 0xE9, SCAN_DECIMAL = 0xEA, SCAN_SPACE = 0xA0, SCAN_OTHER = 0xA7 };

/* The byte of each code point, 0: not looked up yet. Only the pages of scripts in use are ever touched. Two threads may
 * fill in the same byte at once, with the same value. */
static uint8_t scan_known[0x110000];

static uint8_t scan_learn(uint32_t c)
{
    uint8_t byte;
    if (c == 0x130 || c == 0x131)
        byte = 'i';
    else if (c == 0x17F)
        byte = 's';
    else if (c == 0x212A)
        byte = 'k';
    else if (Py_UNICODE_ISDECIMAL(c))
        byte = SCAN_DECIMAL;
    else if (Py_UNICODE_ISALNUM(c))
        byte = SCAN_LETTER;
    else if (Py_UNICODE_ISSPACE(c))
        byte = SCAN_SPACE;
    else
        byte = SCAN_OTHER;
    __atomic_store_n(&scan_known[c], byte, __ATOMIC_RELAXED);
    return byte;
}

static inline uint8_t scan_narrow(uint32_t c)
{
    uint8_t byte;
    if (c < 0x100)
        return (uint8_t)c;
    if (c > 0x10FFFF)
        return SCAN_OTHER;
    byte = __atomic_load_n(&scan_known[c], __ATOMIC_RELAXED);
    return byte ? byte : scan_learn(c);
}

/* --- a step of an automaton ---------------------------------------------------------------------------- */

static inline uintptr_t scan_step(uintptr_t row, uint8_t column)
{
    return (uintptr_t)((const uint64_t *)row)[column];
}

static inline int scan_is_match(uintptr_t row)
{
    return (row & 8) != 0;
}

/* The set of patterns at the head of a row. */
static inline uint64_t scan_matched(uintptr_t row)
{
    return *(const uint64_t *)row;
}

/* --- runs of back-ticks -------------------------------------------------------------------------------- */

/* In plain C: where the compiler may not use the instruction, its builtin would be a function call. */
static inline uint32_t scan_popcount(uint64_t bits)
{
    bits -= bits >> 1 & 0x5555555555555555u;
    bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
    return (uint32_t)(bits * 0x0101010101010101u >> 56);
}

/* Counts ``` in 64 bytes, given which of them are back-ticks: a run of n holds n / 3. */
static void scan_fences(scan_pass *pass, uint64_t ticks)
{
    uint64_t triples, at;
    uint32_t run;
    if (!~ticks) {
        pass->counts->code_fences += (pass->ticks + 64) / 3;
        pass->ticks = (pass->ticks + 64) % 3;
        return;
    }
    run = pass->ticks + (uint32_t)__builtin_ctzll(~ticks);   /* the one that goes on from before */
    pass->counts->code_fences += run / 3;
    ticks &= ticks + 1;
    run = (uint32_t)__builtin_clzll(~ticks);                 /* the one that may go on after */
    pass->counts->code_fences += run / 3;
    pass->ticks = run % 3;
    ticks &= ~(uint64_t)0 >> run;
    triples = ticks & ticks >> 1 & ticks >> 2;
    for (at = triples & ~(ticks << 1); at; at &= triples) {
        pass->counts->code_fences += scan_popcount(at);
        triples >>= 3;
    }
}

#endif
