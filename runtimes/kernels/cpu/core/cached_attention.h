/* Causal attention of one chunk of tokens over a cache, in float32, in tasks that may run at the same time.
 *
 * Each token's query is rotated and scaled, its key rotated and appended with its value; then tasks attend. A decode
 * step splits the slots among tasks and merges their partial results; a prefill splits the queries. The result of a
 * token of padding is 0.
 *
 * A token's result does not depend on the chunk that it comes in, on the rows beside it or on the number of threads:
 * slots lie in segments that are the same for all, each segment's part of the softmax is computed alone, and parts
 * are merged in the order of the slots, whichever tasks computed them.
 *
 * Floor of a decode step: the keys and values of the slots that are seen, once, from memory; of a prompt: 4 head_dim
 * floating-point operations for each query and slot.
 */
#ifndef LLMC_CACHED_ATTENTION_H
#define LLMC_CACHED_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t heads, kv_heads, window; /* slots that a token sees, itself included; 0: all */
    float scale;
    int64_t batch, seq, dim, capacity;
    const float *query, *key, *value;               /* first token of each */
    int64_t query_stride, key_stride, value_stride; /* floats from one token to the next */
    const int32_t *total, *chunk;           /* tokens held after, less 1; valid tokens of this chunk, or NULL */
    const float *cosine, *sine;             /* [positions, dim / 2], or NULL */
    float *keys, *values, *output;          /* [batch, kv_heads, capacity, dim] each; [batch, seq, heads * dim] */
    float *rotated;                         /* queries, [batch, seq, heads, dim] */
    struct Partial *partials;               /* [batch, seq, heads, slot_tasks] */
    int64_t row_tasks, slot_tasks, segment; /* of the first slot task */
} Attention;

int64_t first_slot(const Attention *step, int64_t b); /* of this chunk in row b; negative: it does not fit */

int start_attention(Attention *step);        /* divide it into tasks, from what is filled in; -1: no memory */
void append_token(void *step, size_t index); /* index < batch * seq */
void attend_task(void *step, size_t index);  /* index < attention_tasks(), after all tokens */
size_t attention_tasks(const Attention *step);
void merge_attention(const Attention *step); /* after all tasks */
void end_attention(const Attention *step);   /* in any case */

#endif
