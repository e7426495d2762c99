/* Learned score: the text that is scored, its features, and the sums over them. See learned.pxi for the whole.
 *
 * One pass over at most LEARNED_TEXT bytes writes the hash of each token and pair of tokens and counts the structure.
 * A second pass over the hashes takes each bucket once.
 *
 * The results are the same bits on every platform: of libm only frexp and the square root are used, whose results
 * IEEE 754 fixes, and setup.py forbids fused multiply-adds.
 */
#ifndef FASTROUTE_LEARNED_H
#define FASTROUTE_LEARNED_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    LEARNED_HEAD = 1024,
    LEARNED_TAIL = 512,
    LEARNED_TEXT = LEARNED_HEAD + 1 + LEARNED_TAIL,  /* the longest text that is scored, bytes */
    LEARNED_BUCKETS = 1 << 15,
    LEARNED_KNOWN = 1 << 17,                         /* bits of the guard's bitmap */
    LEARNED_COUNTS = 32,
    LEARNED_HASHES = 2 * LEARNED_TEXT                /* every byte may be a token: itself and its pair */
};

enum { LEARNED_SPACE, LEARNED_LOWER, LEARNED_UPPER, LEARNED_DIGIT, LEARNED_LINE, LEARNED_PUNCTUATION };

typedef struct {
    int n;                            /* bytes of the text */
    int hashes;                       /* how many; tokens and pairs alternate */
    uint32_t hash[LEARNED_HASHES];
    uint16_t begin[LEARNED_TEXT];     /* of each token in the text, only if places are wanted */
    uint16_t end[LEARNED_TEXT];
    float count[LEARNED_COUNTS];      /* as they are, not standardised */
} learned_features;

typedef struct {
    /* The prior. */
    const int8_t *table;              /* gain and difficulty of each bucket, interleaved */
    float gain_scale, difficulty_scale, gain_base, difficulty_base;
    float hump_mean, hump_sd;         /* of the hump over the training prompts */
    float score_mean, score_sd;       /* of the score over the training prompts */
    float weight[LEARNED_COUNTS], mean[LEARNED_COUNTS], sd[LEARNED_COUNTS];
    /* The user's own; own is NULL where there is none. */
    const int16_t *own;
    float own_scale;
    float own_weight[LEARNED_COUNTS];
    /* The guard; known is NULL where there is none. */
    const uint8_t *known;
    float known_mean[LEARNED_COUNTS], known_inverse[LEARNED_COUNTS * LEARNED_COUNTS];
} learned_model;

static uint8_t learned_class[256], learned_fold[256];
static float learned_log[LEARNED_TEXT + 2];          /* log(1 + i) */

/* log(x) for x >= 1, from basic operations only: 2 artanh((m - 1) / (m + 1)) + e log 2, with m near 1. */
static double learned_log_of(double x)
{
    int exponent;
    double m = frexp(x, &exponent), s, square, term, sum = 0.0;
    if (m < 0.70710678118654752) {
        m *= 2.0;
        exponent -= 1;
    }
    s = (m - 1.0) / (m + 1.0);
    square = s * s;
    term = s;
    for (int k = 1; k < 30; k += 2) {
        sum += term / k;
        term *= square;
    }
    return 2.0 * sum + exponent * 0.69314718055994530942;
}

/* 1 / (1 + exp(-x)), from basic operations only: exp by halving the argument and squaring the series' value. */
static double learned_sigmoid(double x)
{
    double y, term = 1.0, sum = 1.0;
    if (x > 40.0)
        x = 40.0;
    if (x < -40.0)
        x = -40.0;
    y = -x / 256.0; /* at most 0.16: eleven terms are exact to a double */
    for (int k = 1; k < 12; k++) {
        term *= y / k;
        sum += term;
    }
    for (int k = 0; k < 8; k++)
        sum *= sum;
    return 1.0 / (1.0 + sum);
}

static void learned_prepare(void)
{
    for (int i = 0; i < 256; i++) {
        int capital = i >= 'A' && i <= 'Z';
        learned_fold[i] = (uint8_t)(capital ? i | 32 : i);
        learned_class[i] = (uint8_t)((i >= 'a' && i <= 'z') || i >= 128 ? LEARNED_LOWER
                                     : capital                          ? LEARNED_UPPER
                                     : i >= '0' && i <= '9'             ? LEARNED_DIGIT
                                     : i == '\n'                        ? LEARNED_LINE
                                     : i <= ' ' || i == 127             ? LEARNED_SPACE
                                                                        : LEARNED_PUNCTUATION);
    }
    for (int i = 0; i < LEARNED_TEXT + 2; i++)
        learned_log[i] = (float)learned_log_of(1.0 + i);
}

static inline uint32_t learned_mix(uint32_t h) /* the finaliser of MurmurHash3 */
{
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    return h ^ h >> 16;
}

typedef struct {
    int words, letters, long_words, short_words, capitals, capitalised, not_ascii;
    int numbers, digits, longest_number, decimals, lines, blank_lines;
    int options, first_option, last_option, fences;
    int mark[128]; /* runs of each punctuation mark */
} learned_tally;

static inline int learned_is_letter(uint8_t byte)
{
    return learned_class[byte] == LEARNED_LOWER || learned_class[byte] == LEARNED_UPPER;
}

/* The counts in the order of version 1 of the features. */
static void learned_count(const learned_tally *t, int n, float *to)
{
    const int *mark = t->mark;
    float bytes = (float)n + 1.0f, words = (float)t->words + 1.0f;
    int operators = mark['='] + mark['+'] + mark['*'] + mark['/'] + mark['<'] + mark['>'] + mark['^'] + mark['-'];
    float distance = 0.0f;
    if (t->options > 1)
        distance = (float)(t->last_option - t->first_option) / (float)(t->options - 1);
    to[0] = learned_log[n];
    to[1] = learned_log[t->words];
    to[2] = (float)t->letters / words;
    to[3] = (float)t->long_words / words;
    to[4] = (float)t->short_words / words;
    to[5] = (float)t->capitals / bytes;
    to[6] = (float)t->not_ascii / bytes;
    to[7] = (float)t->digits / bytes;
    to[8] = learned_log[t->numbers];
    to[9] = learned_log[t->longest_number];
    to[10] = learned_log[t->decimals];
    to[11] = learned_log[t->lines];
    to[12] = learned_log[t->blank_lines];
    to[13] = learned_log[t->options];
    to[14] = learned_log[t->options ? t->first_option : n];
    to[15] = (float)learned_log_of(1.0 + distance);
    to[16] = learned_log[mark['?']];
    to[17] = learned_log[mark[',']];
    to[18] = (float)mark[','] / words;
    to[19] = learned_log[mark['.']];
    to[20] = learned_log[mark['(']];
    to[21] = learned_log[mark['"'] + mark['\'']];
    to[22] = learned_log[mark['\\']];
    to[23] = learned_log[mark['$']];
    to[24] = learned_log[operators];
    to[25] = (float)operators / words;
    to[26] = learned_log[mark['{'] + mark['[']];
    to[27] = learned_log[mark[';']];
    to[28] = learned_log[mark['_']];
    to[29] = learned_log[mark[':']];
    to[30] = (float)t->capitalised / words;
    to[31] = learned_log[t->fences];
}

/* The features of a text of at most LEARNED_TEXT bytes. */
static void learned_read(const uint8_t *p, int n, learned_features *to, int places)
{
    learned_tally t;
    uint32_t previous = 0x9e3779b9u, h, u;
    uint32_t *hash = to->hash;
    int i = 0, begin, length, token = 0;
    memset(&t, 0, sizeof t);
    while (i < n) {
        uint8_t byte = p[i];
        int class = learned_class[byte];
        begin = i;
        if (class == LEARNED_SPACE) {
            i++;
            continue;
        }
        if (class == LEARNED_LOWER || class == LEARNED_UPPER) {
            h = 2166136261u; /* FNV-1a over the letters, capitals as small ones */
            t.capitalised += class == LEARNED_UPPER;
            do {
                t.capitals += learned_class[byte] == LEARNED_UPPER;
                t.not_ascii += byte >> 7;
                h = (h ^ learned_fold[byte]) * 16777619u;
                i++;
            } while (i < n && learned_is_letter(byte = p[i]));
            length = i - begin;
            t.words++;
            t.letters += length;
            t.long_words += length >= 9;
            t.short_words += length <= 3;
            if (length == 1 && i < n && learned_fold[p[begin]] <= 'j' && (p[i] == '.' || p[i] == ')')
                && (begin == 0 || p[begin - 1] == '\n' || (begin > 1 && p[begin - 1] == '('))) {
                if (!t.options++)
                    t.first_option = begin;
                t.last_option = begin;
            }
        }
        else if (class == LEARNED_DIGIT) {
            do
                i++;
            while (i < n && learned_class[p[i]] == LEARNED_DIGIT);
            length = i - begin;
            t.numbers++;
            t.digits += length;
            t.decimals += begin > 0 && p[begin - 1] == '.';
            if (length > t.longest_number)
                t.longest_number = length;
            h = 0x01000193u * (uint32_t)(length > 4 ? 5 : length) + 7;
        }
        else if (class == LEARNED_LINE) {
            int lines = 0;
            do
                lines += p[i++] == '\n';
            while (i < n && (learned_class[p[i]] == LEARNED_LINE || learned_class[p[i]] == LEARNED_SPACE));
            t.lines += lines;
            t.blank_lines += lines > 1;
            h = lines > 1 ? 0x51ed270bu : 0x27d4eb2fu;
        }
        else {
            do
                i++;
            while (i < n && p[i] == byte);
            length = i - begin;
            t.mark[byte & 127]++;
            t.fences += byte == '`' && length >= 3;
            h = (uint32_t)byte * 0x9E3779B1u + (length > 1 ? 0x7f4a7c15u : 0);
        }
        u = learned_mix(h);
        *hash++ = u;
        *hash++ = learned_mix(31 * u + previous);
        previous = u;
        if (places) {
            to->begin[token] = (uint16_t)begin;
            to->end[token++] = (uint16_t)i;
        }
    }
    to->n = n;
    to->hashes = (int)(hash - to->hash);
    learned_count(&t, n, to->count);
}

/* Keeps of the hashes the first one of each bucket, in place, and returns how many. */
static int learned_distinct(learned_features *f)
{
    uint64_t seen[LEARNED_BUCKETS / 64];
    int kept = 0;
    memset(seen, 0, sizeof seen);
    for (int i = 0; i < f->hashes; i++) {
        uint32_t hash = f->hash[i], bucket = hash >> 17;
        uint64_t bit = 1ull << (bucket & 63);
        if (!(seen[bucket >> 6] & bit)) {
            seen[bucket >> 6] |= bit;
            f->hash[kept++] = hash;
        }
    }
    f->hashes = kept;
    return kept;
}

static inline float learned_clipped(const learned_model *model, const float *count, int j)
{
    float z = (count[j] - model->mean[j]) / model->sd[j];
    return (z > 3.0f ? 3.0f : z < -3.0f ? -3.0f : z) * 0.17677669529663687f; /* over the root of 32 */
}

/* What a typical strong model has over a weak one at a difficulty. */
static double learned_hump(double difficulty)
{
    double q = 0.8136513872450764; /* 1 / sqrt(1 + pi 1.3 / 8) */
    return learned_sigmoid((1.8 - difficulty) * q) - learned_sigmoid((0.3 - difficulty) * q);
}

/* The score of distinct features: the prior's, or the calibrated gain. `prior` receives the prior's. */
static float learned_score(const learned_model *model, const learned_features *f, float *prior)
{
    int32_t gain = 0, difficulty = 0;
    int64_t own = 0;
    float root = f->hashes ? 1.0f / sqrtf((float)f->hashes) : 0.0f, structure = 0.0f, own_structure = 0.0f, linear, score;
    double hump;
    for (int i = 0; i < f->hashes; i++) {
        uint32_t bucket = f->hash[i] >> 17;
        gain += model->table[2 * bucket];
        difficulty += model->table[2 * bucket + 1];
    }
    for (int j = 0; j < LEARNED_COUNTS; j++)
        structure += model->weight[j] * learned_clipped(model, f->count, j);
    linear = (float)gain * model->gain_scale * root + structure + model->gain_base;
    hump = learned_hump((float)difficulty * model->difficulty_scale * root + model->difficulty_base);
    score = linear + ((float)hump - model->hump_mean) / model->hump_sd;
    *prior = score;
    if (!model->own)
        return score;
    for (int i = 0; i < f->hashes; i++)
        own += model->own[f->hash[i] >> 17];
    for (int j = 0; j < LEARNED_COUNTS; j++)
        own_structure += model->own_weight[j] * learned_clipped(model, f->count, j);
    return 0.06f * ((score - model->score_mean) / model->score_sd) + (float)own * model->own_scale * root + own_structure;
}

/* How unlike the calibration's prompts a text is: the share of its hashes that they lack, and the Mahalanobis distance of
   its counts from theirs. */
static float learned_unknown(const learned_model *model, const learned_features *f, float *distance)
{
    int missing = 0;
    float sum = 0.0f, away[LEARNED_COUNTS];
    for (int i = 0; i < f->hashes; i++) {
        uint32_t bit = f->hash[i] >> 15;
        missing += !(model->known[bit >> 3] >> (bit & 7) & 1);
    }
    for (int j = 0; j < LEARNED_COUNTS; j++)
        away[j] = f->count[j] - model->known_mean[j];
    for (int j = 0; j < LEARNED_COUNTS; j++) {
        float row = 0.0f;
        for (int k = 0; k < LEARNED_COUNTS; k++)
            row += model->known_inverse[j * LEARNED_COUNTS + k] * away[k];
        sum += away[j] * row;
    }
    *distance = sum > 0.0f ? sqrtf(sum) : 0.0f;
    return f->hashes ? (float)missing / (float)f->hashes : 0.0f;
}

/* Ridge regression by conjugate gradients ------------------------------------------------------------------------- */

typedef struct {
    int rows;
    const int64_t *first;     /* rows + 1 places in `bucket` */
    const uint16_t *bucket;   /* the distinct buckets of each row; the value of each is one over their root */
    const float *count;       /* rows * LEARNED_COUNTS, standardised and clipped */
} learned_rows;

/* to = X P X' v over the rows with keep; `weight` is scratch of LEARNED_BUCKETS + LEARNED_COUNTS. */
static void learned_spread(const learned_rows *x, const uint8_t *keep, const double *v, double *weight, double words, double counts)
{
    memset(weight, 0, (LEARNED_BUCKETS + LEARNED_COUNTS) * sizeof *weight);
    for (int r = 0; r < x->rows; r++) {
        int64_t m = x->first[r + 1] - x->first[r];
        if (!keep[r] || v[r] == 0.0)
            continue;
        if (m) {
            double each = v[r] * words / sqrt((double)m);
            for (int64_t i = x->first[r]; i < x->first[r + 1]; i++)
                weight[x->bucket[i]] += each;
        }
        for (int j = 0; j < LEARNED_COUNTS; j++)
            weight[LEARNED_BUCKETS + j] += v[r] * counts * x->count[r * LEARNED_COUNTS + j];
    }
}

static double learned_row(const learned_rows *x, int r, const double *weight)
{
    int64_t m = x->first[r + 1] - x->first[r];
    double sum = 0.0, structure = 0.0;
    for (int64_t i = x->first[r]; i < x->first[r + 1]; i++)
        sum += weight[x->bucket[i]];
    for (int j = 0; j < LEARNED_COUNTS; j++)
        structure += weight[LEARNED_BUCKETS + j] * x->count[r * LEARNED_COUNTS + j];
    return (m ? sum / sqrt((double)m) : 0.0) + structure;
}

/* The posterior mean of the weights, given `target` on the rows with keep: solves (X P X' + noise) v = target and returns
   P X' v in `weight`. `scratch` has 4 * rows doubles. Returns the number of steps. */
static int learned_fit(const learned_rows *x, const uint8_t *keep, const double *target, double words, double counts,
                       double noise, double *weight, double *scratch)
{
    double *v = scratch, *residual = v + x->rows, *direction = residual + x->rows, *image = direction + x->rows;
    double size = 0.0, first, step, next;
    int steps = 0;
    for (int r = 0; r < x->rows; r++) {
        v[r] = 0.0;
        residual[r] = direction[r] = keep[r] ? target[r] : 0.0;
        size += residual[r] * residual[r];
    }
    first = size;
    while (size > first * 1e-16 && steps < 500) {
        double along = 0.0;
        learned_spread(x, keep, direction, weight, words, counts);
        for (int r = 0; r < x->rows; r++) {
            image[r] = keep[r] ? learned_row(x, r, weight) + noise * direction[r] : 0.0;
            along += direction[r] * image[r];
        }
        step = size / along;
        next = 0.0;
        for (int r = 0; r < x->rows; r++) {
            v[r] += step * direction[r];
            residual[r] -= step * image[r];
            next += residual[r] * residual[r];
        }
        for (int r = 0; r < x->rows; r++)
            direction[r] = residual[r] + next / size * direction[r];
        size = next;
        steps++;
    }
    learned_spread(x, keep, v, weight, words, counts);
    return steps;
}

#endif
