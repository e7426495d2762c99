/* The text scan's kernel for regular patterns. Each text is walked from its beginning, whatever its width, by every
 * automaton of the rule set; scan_tables.h has the structures.
 *
 * A step has to wait for the load of the one before it, so four parts of a span are walked side by side: the first
 * from the row that the search has reached, the others as if nothing had matched before them. Then the parts are
 * joined. If the search leaves a part in the row with which the next part was begun, the next part's result is valid.
 * Otherwise the search goes on into the next part until both were in the same row at the same place: from there on
 * they are the same. With a pattern like a.*b that may never happen; then the rest of the text is walked in one
 * stream. Nothing is read more than twice, so the time is linear whatever the text and the patterns.
 */
#ifndef FASTROUTE_SCAN_SEARCH_H
#define FASTROUTE_SCAN_SEARCH_H

#include "scan_tables.h"

enum { SCAN_MARKS = SCAN_SPAN / SCAN_STREAMS / SCAN_MARK };

/* Walks one stream; with `marks`, only until it is in the row that another stream was in at the same place, and then
 * sets *joined. No branch for a match, so that a text full of them is not slower. */
static inline uintptr_t scan_search_one(uintptr_t row, const uint8_t *text, size_t n, const uint8_t *column,
                                        uint64_t *found, const uintptr_t *marks, int *joined)
{
    uint64_t seen = 0;
    size_t i = 0;
    while (i + SCAN_MARK <= n) {
#pragma GCC unroll 16
        for (int k = 0; k < SCAN_MARK; k++) {
            row = scan_step(row, column[text[i + (size_t)k]]);
            seen |= scan_matched(row);
        }
        i += SCAN_MARK;
        if (marks && marks[i / SCAN_MARK - 1] == row) {
            *joined = 1;
            break;
        }
    }
    if (!marks)
        for (; i < n; i++) {
            row = scan_step(row, column[text[i]]);
            seen |= scan_matched(row);
        }
    *found |= seen;
    return row;
}

/* Walks four parts, a multiple of SCAN_MARK long each; sets *apart if two of them did not meet. */
static uintptr_t scan_search_four(const scan_search *search, uintptr_t row, const uint8_t *text, size_t part,
                                  const scan_alphabet *alphabet, uint64_t *found, int *apart)
{
    const uint8_t *column = alphabet->column, *word = alphabet->word;
    const uint8_t *t0 = text, *t1 = t0 + part, *t2 = t1 + part, *t3 = t2 + part;
    uintptr_t marks[3][SCAN_MARKS], first[3], last[3];
    uintptr_t s0 = row;
    uintptr_t s1 = first[0] = search->dfa.start[word[t1[-1]]];
    uintptr_t s2 = first[1] = search->dfa.start[word[t2[-1]]];
    uintptr_t s3 = first[2] = search->dfa.start[word[t3[-1]]];
    uint64_t seen = 0;
    for (size_t i = 0, mark = 0; i < part; i += SCAN_MARK, mark++) {
#pragma GCC unroll 16
        for (size_t k = 0; k < SCAN_MARK; k++) {
            s0 = scan_step(s0, column[t0[i + k]]);
            s1 = scan_step(s1, column[t1[i + k]]);
            s2 = scan_step(s2, column[t2[i + k]]);
            s3 = scan_step(s3, column[t3[i + k]]);
            seen |= scan_matched(s0) | scan_matched(s1) | scan_matched(s2) | scan_matched(s3);
        }
        marks[0][mark] = s1;
        marks[1][mark] = s2;
        marks[2][mark] = s3;
    }
    *found |= seen;
    last[0] = s1, last[1] = s2, last[2] = s3;
    row = s0;
    for (int k = 0; k < 3; k++) {
        int joined = row == first[k];
        if (!joined)
            row = scan_search_one(row, text + part * (size_t)(k + 1), part, column, found, marks[k], &joined);
        if (joined)
            row = last[k];
        else
            *apart = 1;
    }
    return row;
}

/* Walks on from a row over n bytes. */
static uintptr_t scan_search_on(const scan_search *search, uintptr_t row, const uint8_t *text, size_t n,
                                const scan_alphabet *alphabet, uint64_t *found, int *apart)
{
    while (n >= SCAN_STREAMS * SCAN_MARK) {
        size_t span = n < SCAN_SPAN ? n : SCAN_SPAN, part = span / SCAN_STREAMS / SCAN_MARK * SCAN_MARK;
        /* Nothing more can be found: the rest of the text need not be read. */
        if (row == search->sink || !(search->all & ~*found))
            return row;
        if (*apart) {
            row = scan_search_one(row, text, part * SCAN_STREAMS, alphabet->column, found, NULL, NULL);
        } else {
            row = scan_search_four(search, row, text, part, alphabet, found, apart);
        }
        text += part * SCAN_STREAMS;
        n -= part * SCAN_STREAMS;
    }
    return scan_search_one(row, text, n, alphabet->column, found, NULL, NULL);
}

/* Turns characters of two or four bytes into columns. */
static void scan_search_columns(const scan_table *table, uint8_t *to, int kind, const char *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t c = kind == 2 ? ((const Py_UCS2 *)from)[i] : ((const Py_UCS4 *)from)[i];
        to[i] = c < 0x100 ? table->bytes.column[c] : table->above[scan_narrow(c)];
    }
}

/* Searches part of a text, or all of it: `first` and `last` say whether it begins and ends where the text does. Only
 * there ^ and $ may match. */
static void scan_search_part(scan_pass *pass, int kind, const char *data, size_t n, int first, int last)
{
    const scan_table *table = pass->table;
    uint64_t found = pass->counts->found;
    uint8_t columns[SCAN_SPAN];
    for (int k = 0; k < table->search_count; k++) {
        const scan_search *search = &table->searches[k];
        uintptr_t row = first ? search->begin : search->dfa.start[0];
        int apart = 0;
        if (!(search->all & ~found))
            continue;
        if (kind == 1) {
            row = scan_search_on(search, row, (const uint8_t *)data, n, &table->bytes, &found, &apart);
        } else {
            for (size_t done = 0, some; done < n; done += some) {
                some = n - done < SCAN_SPAN ? n - done : SCAN_SPAN;
                if (row == search->sink)
                    break;
                scan_search_columns(table, columns, kind, data + done * (size_t)kind, some);
                row = scan_search_on(search, row, columns, some, &table->columns, &found, &apart);
            }
        }
        if (last)
            found |= scan_matched(scan_step(row, table->end));
    }
    pass->counts->found = found;
}

static void scan_search_text(scan_pass *pass, int kind, const char *data, size_t n, int ends_only)
{
    if (!ends_only) {
        scan_search_part(pass, kind, data, n, 1, 1);
    } else {
        scan_search_part(pass, kind, data, SCAN_END, 1, 0);
        scan_search_part(pass, kind, data + (n - SCAN_END) * (size_t)kind, SCAN_END, 0, 1);
    }
}

#endif
