/* See cached_attention.h. */
#include "core/cached_attention.h"

#include <float.h>
#include <math.h>

#include "contract.h"
#include "core/scratch.h"
#include "core/vec_math.h"

#define SEGMENT 128 /* keys whose scores are kept at once: with 64 floats a key they fit the first-level cache */
#define ROWS_PER_TASK 4
#define MAX_PAIRS 32 /* (query, head) pairs of one task */
#define HEADS_AT_ONCE (MAX_PAIRS / ROWS_PER_TASK)

/* Part of one pair's attention: softmax over some slots, not yet normalized; its total is 0 where there are none. */
typedef struct Partial {
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
static void rotate(const float *x, const float *cosine, const float *sine, int64_t dim, float factor, float *to) {
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

static void start_partial(Partial *partial, int64_t dim) {
    partial->largest = -FLT_MAX;
    partial->total = 0.0f;
    for (int64_t i = 0; i < dim; i++) partial->values[i] = 0.0f;
}

static void rescale(Partial *partial, float factor, int64_t dim) {
    const Vec f = vec_set(factor);
    partial->total *= factor;
    for (int64_t i = 0; i < dim; i += VEC) vec_store(partial->values + i, vec_mul(vec_load(partial->values + i), f));
}

static void merge_partial(Partial *into, const Partial *other, int64_t dim) {
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

static void finish_partial(const Partial *partial, int64_t dim, float *output) {
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

/* Slots lie in segments: the first SEGMENT of them in two, so that a short cache is shared out, too. */
static int64_t segment_of(int64_t slot) { return slot < SEGMENT ? slot / (SEGMENT / 2) : slot / SEGMENT + 1; }
static int64_t segment_start(int64_t segment) {
    return segment < 2 ? segment * (SEGMENT / 2) : (segment - 1) * SEGMENT;
}

/* Softmax over slots [first, first + count) of one segment, into a part that is empty. */
INLINE void attend_slots(const float *query, const float *keys, const float *values, const int64_t dim, int64_t first,
                         int64_t count, Partial *part) {
    float scores[SEGMENT + VEC];
    part->largest = score(query, keys + first * dim, dim, count, scores);
    Vec total = vec_set(0.0f);
    const Vec largest = vec_set(part->largest);
    for (int64_t t = 0; t < count; t += VEC) {
        const Vec e =
            vec_select(vec_lanes(count - t), vec_exp(vec_sub(vec_load(scores + t), largest)), vec_set(0.0f));
        total = vec_add(total, e);
        vec_store(scores + t, e);
    }
    part->total = vec_sum(total);
    accumulate(scores, values + first * dim, dim, count, part->values);
}

/* Add a segment's slots to a pair's result, those that it sees. */
INLINE void attend_segment(Pair *pair, const float *keys, const float *values, const int64_t dim, int64_t segment) {
    const int64_t from = segment_start(segment), to = segment_start(segment + 1);
    const int64_t first = pair->first > from ? pair->first : from, end = pair->end < to ? pair->end : to;
    if (first >= end) return;
    if (pair->partial->total == 0.0f) {
        attend_slots(pair->query, keys, values, dim, first, end - first, pair->partial);
        return;
    }
    Partial part;
    start_partial(&part, dim);
    attend_slots(pair->query, keys, values, dim, first, end - first, &part);
    merge_partial(pair->partial, &part, dim);
}

/* Add segments [from, to] of one head's keys and values ([slots, dim]) to each pair's result. */
static void attend(Pair *pairs, int count, const float *keys, const float *values, int64_t dim, int64_t from,
                   int64_t to) {
    for (int64_t segment = from; segment <= to; segment++) {
        for (int p = 0; p < count; p++) {
            if (dim == 64)
                attend_segment(pairs + p, keys, values, 64, segment);
            else if (dim == 128)
                attend_segment(pairs + p, keys, values, 128, segment);
            else
                attend_segment(pairs + p, keys, values, dim, segment);
        }
    }
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t valid_rows(const Attention *step, int64_t b) {
    return smaller(step->chunk ? step->chunk[b] : (int64_t)step->total[b] + 1, step->seq);
}

int64_t first_slot(const Attention *step, int64_t b) { return (int64_t)step->total[b] + 1 - valid_rows(step, b); }

/* The first slot that the token in a slot sees. */
static int64_t first_seen(const Attention *step, int64_t slot) {
    return step->window && slot + 1 > step->window ? slot + 1 - step->window : 0;
}

int start_attention(Attention *step) {
    int64_t first = step->capacity, last = 0;
    for (int64_t b = 0; b < step->batch; b++) {
        if (valid_rows(step, b) == 0) continue;
        first = smaller(first, first_seen(step, first_slot(step, b)));
        if (step->total[b] > last) last = step->total[b];
    }
    step->row_tasks = (step->seq + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    /* With many queries there are tasks enough; with few, each segment is one. */
    step->segment = step->seq > ROWS_PER_TASK ? 0 : segment_of(first);
    step->slot_tasks = step->seq > ROWS_PER_TASK || first > last ? 1 : segment_of(last) - step->segment + 1;
    const size_t queries = (size_t)(step->batch * step->seq * step->heads);
    const size_t parts = step->slot_tasks > 1 ? queries * step->slot_tasks : 0;
    step->rotated = scratch_take(queries * step->dim * sizeof(float) + parts * sizeof(Partial));
    if (step->rotated == NULL) return -1;
    step->partials = (Partial *)(step->rotated + queries * step->dim);
    return 0;
}

void end_attention(const Attention *step) { scratch_give(step->rotated); }

void append_token(void *data, size_t index) {
    const Attention *step = data;
    const int64_t token = (int64_t)index, b = token / step->seq, s = token % step->seq, dim = step->dim;
    if (s >= valid_rows(step, b)) {
        memset(step->output + token * step->heads * dim, 0, step->heads * dim * sizeof(float));
        return;
    }
    const int64_t slot = first_slot(step, b) + s;
    const float *cosine = step->cosine ? step->cosine + slot * (dim / 2) : NULL;
    const float *sine = step->sine ? step->sine + slot * (dim / 2) : NULL;
    const float *query = step->query + token * step->query_stride;
    float *rotated = step->rotated + token * step->heads * dim;
    for (int64_t h = 0; h < step->heads; h++)
        rotate(query + h * dim, cosine, sine, dim, step->scale, rotated + h * dim);
    for (int64_t h = 0; h < step->kv_heads; h++) {
        const int64_t place = ((b * step->kv_heads + h) * step->capacity + slot) * dim;
        rotate(step->key + token * step->key_stride + h * dim, cosine, sine, dim, 1.0f, step->keys + place);
        memcpy(step->values + place, step->value + token * step->value_stride + h * dim, dim * sizeof(float));
    }
}

/* What a pair's task of a segment computes; the parts of its segments follow each other. */
static Partial *part_of(const Attention *step, int64_t b, int64_t s, int64_t head, int64_t segment) {
    return step->partials + ((b * step->seq + s) * step->heads + head) * step->slot_tasks + segment - step->segment;
}

size_t attention_tasks(const Attention *step) {
    return (size_t)(step->batch * step->kv_heads * step->row_tasks * step->slot_tasks);
}

/* Some queries of one key-value head, over one segment of the slots or all. */
void attend_task(void *data, size_t index) {
    const Attention *step = data;
    const int64_t own = step->segment + (int64_t)index % step->slot_tasks, rest = (int64_t)index / step->slot_tasks;
    const int64_t rows = rest % step->row_tasks * ROWS_PER_TASK, bh = rest / step->row_tasks;
    const int64_t b = bh / step->kv_heads, kv = bh % step->kv_heads, dim = step->dim;
    const int64_t group = step->heads / step->kv_heads, last = smaller(rows + ROWS_PER_TASK, valid_rows(step, b));
    const float *keys = step->keys + bh * step->capacity * dim, *values = step->values + bh * step->capacity * dim;
    for (int64_t g = 0; g < group; g += HEADS_AT_ONCE) {
        Pair pairs[MAX_PAIRS];
        Partial local[MAX_PAIRS];
        int count = 0;
        int64_t first = step->capacity, end = 0;
        for (int64_t s = rows; s < last; s++) {
            const int64_t slot = first_slot(step, b) + s, seen = first_seen(step, slot);
            first = smaller(first, seen);
            end = slot + 1;
            for (int64_t i = g; i < smaller(g + HEADS_AT_ONCE, group); i++, count++) {
                const int64_t head = kv * group + i;
                Partial *partial = step->slot_tasks > 1 ? part_of(step, b, s, head, own) : local + count;
                start_partial(partial, dim);
                const float *query = step->rotated + ((b * step->seq + s) * step->heads + head) * dim;
                pairs[count] = (Pair){query, seen, end, partial};
            }
        }
        if (count > 0 && step->slot_tasks > 1) attend(pairs, count, keys, values, dim, own, own);
        if (count > 0 && step->slot_tasks == 1)
            attend(pairs, count, keys, values, dim, segment_of(first), segment_of(end - 1));
        for (int p = 0; p < count && step->slot_tasks == 1; p++)
            finish_partial(pairs[p].partial, dim, step->output + (pairs[p].query - step->rotated));
    }
}

void merge_attention(const Attention *step) {
    for (int64_t b = 0; b < step->batch && step->slot_tasks > 1; b++)
        for (int64_t s = 0; s < valid_rows(step, b); s++) {
            const int64_t slot = first_slot(step, b) + s, first = segment_of(first_seen(step, slot));
            for (int64_t h = 0; h < step->heads; h++) {
                Partial *whole = part_of(step, b, s, h, first);
                for (int64_t p = first + 1; p <= segment_of(slot); p++)
                    merge_partial(whole, part_of(step, b, s, h, p), step->dim);
                finish_partial(whole, step->dim, step->output + ((b * step->seq + s) * step->heads + h) * step->dim);
            }
        }
}
