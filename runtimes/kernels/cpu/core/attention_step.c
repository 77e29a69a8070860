/* See attention_step.h. */
#include "core/attention_step.h"

#include <string.h>

#define SLOTS_PER_TASK 128
#define ROWS_PER_TASK 4
#define HEADS_AT_ONCE (MAX_PAIRS / ROWS_PER_TASK)

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t valid_rows(const AttentionStep *step, int64_t b) {
    return smaller(step->chunk ? step->chunk[b] : (int64_t)step->total[b] + 1, step->seq);
}

int64_t first_slot(const AttentionStep *step, int64_t b) { return (int64_t)step->total[b] + 1 - valid_rows(step, b); }

size_t plan_attention(AttentionStep *step) {
    int64_t longest = 0;
    for (int64_t b = 0; b < step->batch; b++)
        if (step->total[b] >= longest) longest = (int64_t)step->total[b] + 1;
    step->row_tasks = (step->seq + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    /* With many queries there are tasks enough; with few, their slots are shared out. */
    step->slot_tasks = step->seq > ROWS_PER_TASK ? 1 : (longest + SLOTS_PER_TASK - 1) / SLOTS_PER_TASK;
    if (step->slot_tasks == 1 && step->seq <= ROWS_PER_TASK && longest > 32) step->slot_tasks = 2;
    const size_t queries = (size_t)(step->batch * step->seq * step->heads);
    return queries * step->dim * sizeof(float) +
           (step->slot_tasks > 1 ? queries * step->slot_tasks * sizeof(Partial) : 0);
}

void place_attention(AttentionStep *step, void *memory) {
    step->rotated = memory;
    step->partials = (Partial *)(step->rotated + step->batch * step->seq * step->heads * step->dim);
}

void append_token(void *data, size_t index) {
    const AttentionStep *step = data;
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
        rotate(step->key + token * step->kv_stride + h * dim, cosine, sine, dim, 1.0f, step->keys + place);
        memcpy(step->values + place, step->value + token * step->kv_stride + h * dim, dim * sizeof(float));
    }
}

static Partial *parts_of(const AttentionStep *step, int64_t b, int64_t s, int64_t head) {
    return step->partials + ((b * step->seq + s) * step->heads + head) * step->slot_tasks;
}

size_t attention_tasks(const AttentionStep *step) {
    return (size_t)(step->batch * step->kv_heads * step->row_tasks * step->slot_tasks);
}

/* Some queries of one key-value head, over some of the slots. */
void attend_task(void *data, size_t index) {
    const AttentionStep *step = data;
    const int64_t part = (int64_t)index % step->slot_tasks, rest = (int64_t)index / step->slot_tasks;
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
            const int64_t slot = first_slot(step, b) + s;
            const int64_t seen = step->window && slot + 1 > step->window ? slot + 1 - step->window : 0;
            first = smaller(first, seen);
            end = slot + 1;
            for (int64_t i = g; i < smaller(g + HEADS_AT_ONCE, group); i++, count++) {
                const int64_t head = kv * group + i;
                Partial *partial = step->slot_tasks > 1 ? parts_of(step, b, s, head) + part : local + count;
                start_partial(partial, dim);
                const float *query = step->rotated + ((b * step->seq + s) * step->heads + head) * dim;
                pairs[count] = (Pair){query, seen, end, partial};
            }
        }
        const int64_t share = (end - first + step->slot_tasks - 1) / step->slot_tasks, from = first + part * share;
        if (count > 0) attend(pairs, count, keys, values, dim, from, smaller(from + share, end));
        for (int p = 0; p < count && step->slot_tasks == 1; p++)
            finish_partial(pairs[p].partial, dim, step->output + (pairs[p].query - step->rotated));
    }
}

void finish_attention(const AttentionStep *step) {
    for (int64_t b = 0; b < step->batch && step->slot_tasks > 1; b++)
        for (int64_t s = 0; s < valid_rows(step, b); s++)
            for (int64_t h = 0; h < step->heads; h++) {
                Partial *parts = parts_of(step, b, s, h);
                for (int64_t p = 1; p < step->slot_tasks; p++)
                    if (parts[p].total != 0.0f) merge_partial(parts, parts + p, step->dim);
                finish_partial(parts, step->dim, step->output + ((b * step->seq + s) * step->heads + h) * step->dim);
            }
}
