/* Causal attention of single queries over a cache, in float32. */
#ifndef LLMC_CACHED_ATTENTION_H
#define LLMC_CACHED_ATTENTION_H

#include <stdint.h>

#include "contract.h"

#define MAX_PAIRS 32 /* (query, head) pairs of one task */

/* Part of one pair's attention: softmax over some slots, not yet normalized. */
typedef struct {
    float largest, total;
    float values[LARGEST_HEAD];
} Partial;

/* A query of one head, and the slots that it sees. */
typedef struct {
    const float *query; /* [head_dim], scaled */
    int64_t first, end;
    Partial *partial;
} Pair;

/* Rotate the halves of x [dim] by the angles of one position ([dim / 2] each); to may be x. */
void rotate(const float *x, const float *cosine, const float *sine, int64_t dim, float factor, float *to);

/* Add slots [from, to) of one head's keys and values ([slots, dim]) to each pair's partial result. */
void attend(Pair *pairs, int count, const float *keys, const float *values, int64_t dim, int64_t from, int64_t to);

void start_partial(Partial *partial, int64_t dim);
void merge_partial(Partial *into, const Partial *other, int64_t dim);
void finish_partial(const Partial *partial, int64_t dim, float *output);

#endif
