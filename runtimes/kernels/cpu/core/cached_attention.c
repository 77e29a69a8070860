/* See cached_attention.h. */
#include "core/cached_attention.h"

#include <float.h>
#include <math.h>

#include "core/vec_math.h"

#define CHUNK 128 /* keys whose scores are kept at once: with 64 floats a key they fit the first-level cache */

void rotate(const float *x, const float *cosine, const float *sine, int64_t dim, float factor, float *to) {
    const int64_t half = dim / 2;
    const Vec f = vec_set(factor);
    for (int64_t i = 0; i < half; i += VEC) {
        const Lanes lanes = vec_lanes(half - i);
        Vec a = vec_load_lanes(x + i, lanes), b = vec_load_lanes(x + half + i, lanes);
        if (cosine) {
            const Vec c = vec_load_lanes(cosine + i, lanes), s = vec_load_lanes(sine + i, lanes);
            const Vec low = vec_fms(a, c, vec_mul(b, s));
            b = vec_fma(b, c, vec_mul(a, s));
            a = low;
        }
        vec_store_lanes(to + i, vec_mul(a, f), lanes);
        vec_store_lanes(to + half + i, vec_mul(b, f), lanes);
    }
}

void start_partial(Partial *partial, int64_t dim) {
    partial->largest = -FLT_MAX;
    partial->total = 0.0f;
    for (int64_t i = 0; i < dim; i++) partial->values[i] = 0.0f;
}

static void rescale(Partial *partial, float factor, int64_t dim) {
    const Vec f = vec_set(factor);
    partial->total *= factor;
    for (int64_t i = 0; i < dim; i += VEC) vec_store(partial->values + i, vec_mul(vec_load(partial->values + i), f));
}

void merge_partial(Partial *into, const Partial *other, int64_t dim) {
    const float largest = fmaxf(into->largest, other->largest);
    const float mine = expf(into->largest - largest), theirs = expf(other->largest - largest);
    rescale(into, mine, dim);
    into->largest = largest;
    into->total += theirs * other->total;
    for (int64_t i = 0; i < dim; i += VEC) {
        const Vec sum = vec_fma(vec_load(other->values + i), vec_set(theirs), vec_load(into->values + i));
        vec_store(into->values + i, sum);
    }
}

void finish_partial(const Partial *partial, int64_t dim, float *output) {
    const Vec inverse = vec_set(1.0f / partial->total);
    for (int64_t i = 0; i < dim; i += VEC) vec_store(output + i, vec_mul(vec_load(partial->values + i), inverse));
}

/* Scores of one query against keys[0 .. count), VEC at a time; what lies beyond count is -FLT_MAX. */
INLINE float score(const float *query, const float *keys, const int64_t dim, int64_t count, float *scores) {
    Vec largest = vec_set(-FLT_MAX);
    for (int64_t t = 0; t < count; t += VEC) {
        const int64_t left = count - t < VEC ? count - t : VEC;
        Vec sums[VEC];
        for (int64_t j = 0; j < VEC; j++) {
            const float *key = keys + (t + (j < left ? j : left - 1)) * dim;
            Vec sum = vec_mul(vec_load(query), vec_load(key));
            for (int64_t i = VEC; i < dim; i += VEC) sum = vec_fma(vec_load(query + i), vec_load(key + i), sum);
            sums[j] = sum;
        }
        const Vec s = vec_select(vec_lanes(left), vec_sum_each(sums), vec_set(-FLT_MAX));
        largest = vec_max(largest, s);
        vec_store(scores + t, s);
    }
    return vec_largest(largest);
}

INLINE void accumulate(const float *weights, const float *values, const int64_t dim, int64_t count, float *to) {
    for (int64_t start = 0; start < dim; start += 4 * VEC) {
        Vec a = vec_load(to + start), b = vec_set(0.0f), c = b, d = b;
        const int64_t left = dim - start;
        if (left > VEC) b = vec_load(to + start + VEC);
        if (left > 2 * VEC) c = vec_load(to + start + 2 * VEC);
        if (left > 3 * VEC) d = vec_load(to + start + 3 * VEC);
        for (int64_t t = 0; t < count; t++) {
            const Vec w = vec_set(weights[t]);
            const float *value = values + t * dim + start;
            a = vec_fma(w, vec_load(value), a);
            if (left > VEC) b = vec_fma(w, vec_load(value + VEC), b);
            if (left > 2 * VEC) c = vec_fma(w, vec_load(value + 2 * VEC), c);
            if (left > 3 * VEC) d = vec_fma(w, vec_load(value + 3 * VEC), d);
        }
        vec_store(to + start, a);
        if (left > VEC) vec_store(to + start + VEC, b);
        if (left > 2 * VEC) vec_store(to + start + 2 * VEC, c);
        if (left > 3 * VEC) vec_store(to + start + 3 * VEC, d);
    }
}

INLINE void attend_chunk(Pair *pair, const float *keys, const float *values, const int64_t dim, int64_t from,
                         int64_t to) {
    const int64_t first = pair->first > from ? pair->first : from, end = pair->end < to ? pair->end : to;
    if (first >= end) return;
    float scores[CHUNK + VEC];
    Partial *partial = pair->partial;
    const int64_t count = end - first;
    const float chunk = score(pair->query, keys + first * dim, dim, count, scores);
    if (chunk > partial->largest) {
        rescale(partial, partial->total > 0.0f ? expf(partial->largest - chunk) : 0.0f, dim);
        partial->largest = chunk;
    }
    Vec total = vec_set(0.0f);
    const Vec largest = vec_set(partial->largest);
    for (int64_t t = 0; t < count; t += VEC) {
        const Vec e =
            vec_select(vec_lanes(count - t), vec_exp(vec_sub(vec_load(scores + t), largest)), vec_set(0.0f));
        total = vec_add(total, e);
        vec_store(scores + t, e);
    }
    partial->total += vec_sum(total);
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
