/* Attention of the domain llmc.cpu, over a shared cache.
 *
 *     GroupQueryAttention   as com.microsoft's: rotary embedding, append to the cache, causal attention
 *
 * inputs   0 query [b, s, heads x dim]    1 key, 2 value (optional): where they are absent, beside the query
 *          3 past key, 4 past value [b, kv_heads, capacity, dim]        5 total [b] int32: tokens held after, less 1
 *          6 chunk [b] int32: valid tokens of this chunk                7 cos, 8 sin [positions, dim / 2] (optional)
 * outputs  0 [b, s, heads x dim]    1 present key, 2 present value: the memory of the past, where it is bound so
 */
#include <stdlib.h>

#include "contract.h"
#include "core/cached_attention.h"
#include "core/scratch.h"
#include "ort/operator.h"

#define FEW_TOKENS 8 /* below, one thread appends them sooner than several are woken */
#define BATCHES 64

typedef struct {
    OrtApi api;
    int64_t heads, kv_heads, window;
    float scale;
    Tensor cosine, sine; /* where they are constants */
} Kernel;

/* Keys or values after this chunk, beginning as those before it. */
static OrtStatus *make_present(OrtApi api, OrtKernelContext *context, size_t index, const Tensor *past,
                               float **data) {
    TRY(make_output(api, context, index, past, data));
    if (*data != past->data && elements(past)) memcpy(*data, past->data, (size_t)elements(past) * sizeof(float));
    return NULL;
}

/* Queries, keys and values: one input, or three; or the value alone is one of its own. */
static OrtStatus *read_tokens(OrtApi api, OrtKernelContext *context, Attention *step, const Tensor *query) {
    Tensor key = {0}, value = {0};
    TRY(read_input(api, context, IN_KEY, &key));
    TRY(read_input(api, context, IN_VALUE, &value));
    const int64_t width = step->heads * step->dim, kv_width = step->kv_heads * step->dim;
    Tensor expected = *query;
    expected.dims[2] = kv_width;
    const int has_key = key.rank != 0, has_value = value.rank != 0;
    const int fits =
        (!has_key || (has_value && same_shape(&key, &expected))) && (!has_value || same_shape(&value, &expected));
    REFUSE(api, !fits || query->dims[2] != width + (!has_key + !has_value) * kv_width,
           "queries, keys and values do not have the width of their heads");
    step->query = query->data, step->query_stride = query->dims[2];
    step->key = has_key ? key.data : step->query + width;
    step->key_stride = has_key ? kv_width : query->dims[2];
    step->value = has_value ? value.data : step->key + kv_width;
    step->value_stride = has_value ? kv_width : query->dims[2];
    return NULL;
}

/* The length of each row, and the angles of each slot that it fills. */
static OrtStatus *read_positions(const Kernel *kernel, OrtKernelContext *context, Attention *step) {
    OrtApi api = kernel->api;
    Tensor total = {0}, chunk = {0}, cosine = kernel->cosine, sine = kernel->sine;
    TRY(read_input(api, context, IN_TOTAL, &total));
    TRY(read_input(api, context, IN_CHUNK, &chunk));
    TRY(read_input(api, context, IN_COS, &cosine));
    TRY(read_input(api, context, IN_SIN, &sine));
    REFUSE(api, elements(&total) != step->batch || (chunk.rank && elements(&chunk) != step->batch),
           "there is not one length a row");
    REFUSE(api, !same_shape(&cosine, &sine) || (cosine.rank && (cosine.rank != 2 || cosine.dims[1] != step->dim / 2)),
           "angles are not [positions, head / 2]");
    step->total = total.data, step->chunk = chunk.data, step->cosine = cosine.data, step->sine = sine.data;
    for (int64_t b = 0; b < step->batch; b++) {
        REFUSE(api, step->total[b] >= step->capacity || first_slot(step, b) < 0, "a row does not fit into the cache");
        REFUSE(api, cosine.rank && step->total[b] >= cosine.dims[0], "a row is longer than the tables of angles");
    }
    return NULL;
}

static OrtStatus *read_step(const Kernel *kernel, OrtKernelContext *context, Attention *step) {
    OrtApi api = kernel->api;
    Tensor query = {0}, past_key = {0}, past_value = {0};
    TRY(read_input(api, context, IN_QUERY, &query));
    TRY(read_input(api, context, IN_PAST_KEY, &past_key));
    TRY(read_input(api, context, IN_PAST_VALUE, &past_value));
    REFUSE(api, query.rank != 3 || past_key.rank != 4, "attention takes [b, s, width] and a 4-D cache");
    const int64_t *cache = past_key.dims;
    REFUSE(api, cache[3] < 1 || cache[3] % HEAD_MULTIPLE || cache[3] > LARGEST_HEAD,
           "head sizes are multiples of 32 up to 256");
    REFUSE(api, !same_shape(&past_key, &past_value) || cache[0] != query.dims[0] || cache[1] != kernel->kv_heads,
           "past keys and values are not [b, kv_heads, capacity, head]");
    step->heads = kernel->heads, step->kv_heads = kernel->kv_heads, step->window = kernel->window;
    step->scale = kernel->scale, step->batch = query.dims[0], step->seq = query.dims[1];
    step->capacity = cache[2], step->dim = cache[3];
    TRY(read_tokens(api, context, step, &query));
    TRY(read_positions(kernel, context, step));
    TRY(make_present(api, context, 1, &past_key, &step->keys));
    TRY(make_present(api, context, 2, &past_value, &step->values));
    query.dims[2] = step->heads * step->dim;
    return make_output(api, context, 0, &query, &step->output);
}

static OrtStatus *run_step(OrtApi api, OrtKernelContext *context, Attention *step) {
    const size_t tokens = (size_t)(step->batch * step->seq), tasks = attention_tasks(step);
    if (tokens >= FEW_TOKENS)
        TRY(ORT_PARALLEL_FOR(api)(context, append_token, tokens, 0, step));
    else
        for (size_t token = 0; token < tokens; token++) append_token(step, token);
    /* Late queries of a prompt see more slots: more batches than threads keep all of them busy. */
    const size_t batches = step->row_tasks == 1 ? 0 : tasks < BATCHES ? tasks : BATCHES;
    TRY(ORT_PARALLEL_FOR(api)(context, attend_task, tasks, batches, step));
    merge_attention(step);
    return NULL;
}

static OrtStatus *compute(void *opaque, OrtKernelContext *context) {
    const Kernel *kernel = opaque;
    Attention step = {0};
    TRY(read_step(kernel, context, &step));
    if (step.batch * step.seq == 0) return NULL;
    REFUSE(kernel->api, start_attention(&step) != 0, "out of memory");
    OrtStatus *status = run_step(kernel->api, context, &step);
    end_attention(&step);
    return status;
}

static OrtStatus *read_attributes(Kernel *kernel, const OrtKernelInfo *info) {
    OrtApi api = kernel->api;
    kernel->heads = attribute(api, info, "num_heads");
    kernel->kv_heads = attribute(api, info, "kv_num_heads");
    kernel->window = attribute(api, info, "local_window_size");
    TRY(ORT_ATTRIBUTE_FLOAT(api)(info, "scale", &kernel->scale));
    REFUSE(api, kernel->heads < 1 || kernel->kv_heads < 1 || kernel->heads % kernel->kv_heads,
           "heads are no multiple of the key-value heads");
    REFUSE(api, kernel->window < 0, "a window of less than no token");
    TRY(read_constant(api, info, IN_COS, &kernel->cosine));
    return read_constant(api, info, IN_SIN, &kernel->sine);
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    (void)op;
    Kernel *kernel = calloc(1, sizeof *kernel);
    REFUSE(api, kernel == NULL, "out of memory");
    kernel->api = api;
    OrtStatus *status = read_attributes(kernel, info);
    if (status != NULL)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static void destroy(void *opaque) {
    free(opaque);
    scratch_free();
}

#define INPUTS "fFFffiIFF"
_Static_assert(sizeof INPUTS == ATTENTION_INPUTS + 1, "a letter an input");

const Operator llmc_attention = {FUNCTIONS, "GroupQueryAttention", INPUTS, "fff"};
