/* See cached_attention.h. */
#include "cached_attention.h"

#include <float.h>
#include <math.h>

#include "simd.h"

#define CHUNK 128 /* keys whose scores are kept at once: with 64 floats a key they fit the first-level cache */

void rotate(const float *x, const float *cosine, const float *sine, int64_t dim, float factor, float *to) {
    const int64_t half = dim / 2;
    const __m512 f = _mm512_set1_ps(factor);
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = first_lanes(half - i);
        __m512 a = _mm512_maskz_loadu_ps(mask, x + i), b = _mm512_maskz_loadu_ps(mask, x + half + i);
        if (cosine) {
            const __m512 c = _mm512_maskz_loadu_ps(mask, cosine + i), s = _mm512_maskz_loadu_ps(mask, sine + i);
            const __m512 low = _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s));
            b = _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s));
            a = low;
        }
        _mm512_mask_storeu_ps(to + i, mask, _mm512_mul_ps(a, f));
        _mm512_mask_storeu_ps(to + half + i, mask, _mm512_mul_ps(b, f));
    }
}

void start_partial(Partial *partial, int64_t dim) {
    partial->largest = -FLT_MAX;
    partial->total = 0.0f;
    for (int64_t i = 0; i < dim; i++) partial->values[i] = 0.0f;
}

static void rescale(Partial *partial, float factor, int64_t dim) {
    const __m512 f = _mm512_set1_ps(factor);
    partial->total *= factor;
    for (int64_t i = 0; i < dim; i += 16)
        _mm512_storeu_ps(partial->values + i, _mm512_mul_ps(_mm512_loadu_ps(partial->values + i), f));
}

void merge_partial(Partial *into, const Partial *other, int64_t dim) {
    const float largest = fmaxf(into->largest, other->largest);
    const float mine = expf(into->largest - largest), theirs = expf(other->largest - largest);
    rescale(into, mine, dim);
    into->largest = largest;
    into->total += theirs * other->total;
    for (int64_t i = 0; i < dim; i += 16) {
        const __m512 sum = _mm512_fmadd_ps(_mm512_loadu_ps(other->values + i), _mm512_set1_ps(theirs),
                                           _mm512_loadu_ps(into->values + i));
        _mm512_storeu_ps(into->values + i, sum);
    }
}

void finish_partial(const Partial *partial, int64_t dim, float *output) {
    const __m512 inverse = _mm512_set1_ps(1.0f / partial->total);
    for (int64_t i = 0; i < dim; i += 16)
        _mm512_storeu_ps(output + i, _mm512_mul_ps(_mm512_loadu_ps(partial->values + i), inverse));
}

/* Scores of one query against keys[0 .. count), 16 at a time; what lies beyond count is -FLT_MAX. */
static inline __attribute__((always_inline)) float score(const float *query, const float *keys, const int64_t dim,
                                                         int64_t count, float *scores) {
    __m512 largest = _mm512_set1_ps(-FLT_MAX);
    for (int64_t t = 0; t < count; t += 16) {
        const int64_t left = count - t < 16 ? count - t : 16;
        __m512 sums[16];
        for (int64_t j = 0; j < 16; j++) {
            const float *key = keys + (t + (j < left ? j : left - 1)) * dim;
            __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(query), _mm512_loadu_ps(key));
            for (int64_t i = 16; i < dim; i += 16)
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(query + i), _mm512_loadu_ps(key + i), sum);
            sums[j] = sum;
        }
        const __m512 s = _mm512_mask_mov_ps(_mm512_set1_ps(-FLT_MAX), first_lanes(left), sum_each(sums));
        largest = _mm512_max_ps(largest, s);
        _mm512_storeu_ps(scores + t, s);
    }
    return _mm512_reduce_max_ps(largest);
}

static inline __attribute__((always_inline)) void accumulate(const float *weights, const float *values,
                                                             const int64_t dim, int64_t count, float *to) {
    for (int64_t start = 0; start < dim; start += 64) {
        __m512 a = _mm512_loadu_ps(to + start), b = _mm512_setzero_ps(), c = b, d = b;
        const int64_t lanes = dim - start;
        if (lanes > 16) b = _mm512_loadu_ps(to + start + 16);
        if (lanes > 32) c = _mm512_loadu_ps(to + start + 32);
        if (lanes > 48) d = _mm512_loadu_ps(to + start + 48);
        for (int64_t t = 0; t < count; t++) {
            const __m512 w = _mm512_set1_ps(weights[t]);
            const float *value = values + t * dim + start;
            a = _mm512_fmadd_ps(w, _mm512_loadu_ps(value), a);
            if (lanes > 16) b = _mm512_fmadd_ps(w, _mm512_loadu_ps(value + 16), b);
            if (lanes > 32) c = _mm512_fmadd_ps(w, _mm512_loadu_ps(value + 32), c);
            if (lanes > 48) d = _mm512_fmadd_ps(w, _mm512_loadu_ps(value + 48), d);
        }
        _mm512_storeu_ps(to + start, a);
        if (lanes > 16) _mm512_storeu_ps(to + start + 16, b);
        if (lanes > 32) _mm512_storeu_ps(to + start + 32, c);
        if (lanes > 48) _mm512_storeu_ps(to + start + 48, d);
    }
}

static inline __attribute__((always_inline)) void attend_chunk(Pair *pair, const float *keys, const float *values,
                                                               const int64_t dim, int64_t from, int64_t to) {
    const int64_t first = pair->first > from ? pair->first : from, end = pair->end < to ? pair->end : to;
    if (first >= end) return;
    float scores[CHUNK + 16];
    Partial *partial = pair->partial;
    const int64_t count = end - first;
    const float chunk = score(pair->query, keys + first * dim, dim, count, scores);
    if (chunk > partial->largest) {
        rescale(partial, partial->total > 0.0f ? expf(partial->largest - chunk) : 0.0f, dim);
        partial->largest = chunk;
    }
    __m512 total = _mm512_setzero_ps();
    const __m512 largest = _mm512_set1_ps(partial->largest);
    for (int64_t t = 0; t < count; t += 16) {
        const __m512 e = _mm512_maskz_mov_ps(first_lanes(count - t),
                                             exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + t), largest)));
        total = _mm512_add_ps(total, e);
        _mm512_storeu_ps(scores + t, e);
    }
    partial->total += _mm512_reduce_add_ps(total);
    accumulate(scores, values + first * dim, dim, count, partial->values);
}

void attend(Pair *pairs, int count, const float *keys, const float *values, int64_t dim, int64_t from, int64_t to) {
    for (int64_t start = from; start < to; start += CHUNK) {
        const int64_t end = start + CHUNK < to ? start + CHUNK : to;
        for (int p = 0; p < count; p++) {
            if (dim == 64)
                attend_chunk(pairs + p, keys, values, 64, start, end);
            else if (dim == 128)
                attend_chunk(pairs + p, keys, values, 128, start, end);
            else
                attend_chunk(pairs + p, keys, values, dim, start, end);
        }
    }
}
