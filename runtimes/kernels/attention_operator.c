/* Attention of the domain llmc.cpu, over a shared cache.
 *
 *     GroupQueryAttention   as com.microsoft's: rotary embedding, append to the cache, causal attention
 *
 * inputs   0 query [b, s, heads x dim], or q, k and v side by side      1 key, 2 value (optional)
 *          3 past key, 4 past value [b, kv_heads, capacity, dim]        5 seqlens_k [b] int32: tokens held after, less 1
 *          6 query_seqlens [b] int32: valid tokens of this chunk        7 cos, 8 sin [positions, dim / 2] (optional)
 * outputs  0 [b, s, heads x dim]    1 present key, 2 present value: the memory of the past, where it is bound so
 *
 * A decode step splits the slots among tasks and merges what they found; a prefill splits the queries. The result of a
 * token of padding is 0.
 */
#include <stdlib.h>
#include <string.h>

#include "cached_attention.h"
#include "ort_kernel.h"

enum { IN_QUERY, IN_KEY, IN_VALUE, IN_PAST_KEY, IN_PAST_VALUE, IN_TOTAL, IN_CHUNK, IN_COS, IN_SIN, INPUTS };
#define SLOTS_PER_TASK 128
#define ROWS_PER_TASK 4

typedef struct {
    OrtApi api;
    int64_t heads, kv_heads, window;
    float scale;
} Kernel;

typedef struct {
    const Kernel *kernel;
    int64_t batch, seq, dim, capacity, group;
    const float *query, *key, *value; /* first row of each */
    int64_t query_stride, kv_stride;  /* floats from one token to the next */
    const int32_t *total, *chunk;
    const float *cosine, *sine;
    float *keys, *values, *rotated, *output;
    int64_t row_tasks, slot_tasks, heads_per_task;
    Partial *partials;
} Call;

static int64_t valid_rows(const Call *call, int64_t b) {
    const int64_t rows = call->chunk ? call->chunk[b] : call->total[b] + 1;
    return rows < call->seq ? rows : call->seq;
}

static int64_t slot_of(const Call *call, int64_t b, int64_t s) { return call->total[b] + 1 - valid_rows(call, b) + s; }

/* Rotate one token's queries, and append its key and value to the cache; the result of padding is 0. */
static void append_token(void *data, size_t index) {
    const Call *call = data;
    const Kernel *kernel = call->kernel;
    const int64_t b = (int64_t)index / call->seq, s = (int64_t)index % call->seq, dim = call->dim;
    if (s >= valid_rows(call, b)) {
        memset(call->output + (int64_t)index * kernel->heads * dim, 0, kernel->heads * dim * sizeof(float));
        return;
    }
    const int64_t slot = slot_of(call, b, s);
    const float *cosine = call->cosine ? call->cosine + slot * (dim / 2) : NULL;
    const float *sine = call->sine ? call->sine + slot * (dim / 2) : NULL;
    const float *query = call->query + (int64_t)index * call->query_stride;
    for (int64_t h = 0; h < kernel->heads; h++)
        rotate(query + h * dim, cosine, sine, dim, kernel->scale, call->rotated + ((int64_t)index * kernel->heads + h) * dim);
    for (int64_t h = 0; h < kernel->kv_heads; h++) {
        const int64_t place = ((b * kernel->kv_heads + h) * call->capacity + slot) * dim;
        rotate(call->key + (int64_t)index * call->kv_stride + h * dim, cosine, sine, dim, 1.0f, call->keys + place);
        memcpy(call->values + place, call->value + (int64_t)index * call->kv_stride + h * dim, dim * sizeof(float));
    }
}

static int64_t partial_index(const Call *call, int64_t b, int64_t s, int64_t head, int64_t part) {
    return ((b * call->seq + s) * call->kernel->heads + head) * call->slot_tasks + part;
}

/* Some queries of one key-value head, over some of the slots. */
static void attend_task(void *data, size_t index) {
    const Call *call = data;
    const Kernel *kernel = call->kernel;
    const int64_t part = (int64_t)index % call->slot_tasks, rest = (int64_t)index / call->slot_tasks;
    const int64_t rows = rest % call->row_tasks * ROWS_PER_TASK, bh = rest / call->row_tasks;
    const int64_t b = bh / kernel->kv_heads, kv = bh % kernel->kv_heads, dim = call->dim;
    const float *keys = call->keys + bh * call->capacity * dim, *values = call->values + bh * call->capacity * dim;
    const int64_t last = rows + ROWS_PER_TASK < valid_rows(call, b) ? rows + ROWS_PER_TASK : valid_rows(call, b);
    for (int64_t g = 0; g < call->group; g += call->heads_per_task) {
        Pair pairs[MAX_PAIRS];
        Partial local[MAX_PAIRS];
        int count = 0;
        int64_t first = call->capacity, end = 0;
        for (int64_t s = rows; s < last; s++) {
            const int64_t slot = slot_of(call, b, s);
            const int64_t seen = kernel->window && slot + 1 > kernel->window ? slot + 1 - kernel->window : 0;
            if (seen < first) first = seen;
            if (slot + 1 > end) end = slot + 1;
            for (int64_t i = g; i < g + call->heads_per_task && i < call->group; i++, count++) {
                const int64_t head = kv * call->group + i;
                Partial *partial = call->slot_tasks > 1 ? call->partials + partial_index(call, b, s, head, part) : local + count;
                start_partial(partial, dim);
                const float *query = call->rotated + ((b * call->seq + s) * kernel->heads + head) * dim;
                pairs[count] = (Pair){query, seen, slot + 1, partial};
            }
        }
        if (count == 0) continue;
        const int64_t share = (end - first + call->slot_tasks - 1) / call->slot_tasks;
        const int64_t from = first + part * share, to = from + share < end ? from + share : end;
        attend(pairs, count, keys, values, dim, from, to);
        if (call->slot_tasks > 1) continue;
        for (int p = 0; p < count; p++) {
            const int64_t offset = pairs[p].query - call->rotated;
            finish_partial(pairs[p].partial, dim, call->output + offset);
        }
    }
}

static void merge(const Call *call) {
    for (int64_t b = 0; b < call->batch; b++)
        for (int64_t s = 0; s < valid_rows(call, b); s++)
            for (int64_t h = 0; h < call->kernel->heads; h++) {
                Partial *parts = call->partials + partial_index(call, b, s, h, 0);
                for (int64_t p = 1; p < call->slot_tasks; p++)
                    if (parts[p].total != 0.0f) merge_partial(parts, parts + p, call->dim);
                finish_partial(parts, call->dim, call->output + ((b * call->seq + s) * call->kernel->heads + h) * call->dim);
            }
}

static OrtStatus *present(OrtApi api, OrtKernelContext *context, size_t in, size_t out, const int64_t dims[4],
                          float **data) {
    const float *past = optional_input(api, context, in);
    OrtValue *value = NULL;
    OrtStatus *status = ORT_OUTPUT(api)(context, out, dims, 4, &value);
    if (status == NULL) status = ORT_TENSOR_DATA(api)(value, (void **)data);
    if (status == NULL && *data != past) memcpy(*data, past, (size_t)(dims[0] * dims[1] * dims[2] * dims[3]) * 4);
    return status;
}

static OrtStatus *read_call(const Kernel *kernel, OrtKernelContext *context, Call *call) {
    OrtApi api = kernel->api;
    const OrtValue *query = NULL, *past = NULL;
    OrtValue *output = NULL;
    int64_t shape[8], cache[8];
    size_t rank = 0, cache_rank = 0;
    OrtStatus *status = ORT_INPUT(api)(context, IN_QUERY, &query);
    if (status == NULL) status = ORT_INPUT(api)(context, IN_PAST_KEY, &past);
    if (status == NULL) status = read_shape(api, query, shape, &rank);
    if (status == NULL) status = read_shape(api, past, cache, &cache_rank);
    if (status != NULL) return status;
    if (rank != 3 || cache_rank != 4) return fail(api, "llmc.cpu: attention takes [b, s, width] and a 4-D cache");
    call->batch = shape[0], call->seq = shape[1], call->capacity = cache[2], call->dim = cache[3];
    call->group = kernel->heads / kernel->kv_heads;
    if (call->dim % 32 || call->dim > MAX_HEAD) return fail(api, "llmc.cpu: head sizes are multiples of 32 up to 256");
    call->query = optional_input(api, context, IN_QUERY);
    call->key = optional_input(api, context, IN_KEY);
    call->value = optional_input(api, context, IN_VALUE);
    call->query_stride = shape[2], call->kv_stride = kernel->kv_heads * call->dim;
    if (call->key == NULL) {
        call->key = call->query + kernel->heads * call->dim;
        call->value = call->key + kernel->kv_heads * call->dim;
        call->kv_stride = shape[2];
    }
    call->total = (const int32_t *)optional_input(api, context, IN_TOTAL);
    call->chunk = (const int32_t *)optional_input(api, context, IN_CHUNK);
    call->cosine = optional_input(api, context, IN_COS);
    call->sine = optional_input(api, context, IN_SIN);
    for (int64_t b = 0; b < call->batch; b++)
        if (call->total[b] >= call->capacity || slot_of(call, b, 0) < 0)
            return fail(api, "llmc.cpu: a row does not fit into the cache");
    status = present(api, context, IN_PAST_KEY, 1, cache, &call->keys);
    if (status == NULL) status = present(api, context, IN_PAST_VALUE, 2, cache, &call->values);
    shape[2] = kernel->heads * call->dim;
    if (status == NULL) status = ORT_OUTPUT(api)(context, 0, shape, 3, &output);
    if (status == NULL) status = ORT_TENSOR_DATA(api)(output, (void **)&call->output);
    return status;
}

static OrtStatus *compute(void *opaque, OrtKernelContext *context) {
    const Kernel *kernel = opaque;
    OrtApi api = kernel->api;
    Call call = {.kernel = kernel};
    OrtStatus *status = read_call(kernel, context, &call);
    if (status != NULL || call.batch * call.seq == 0) return status;
    const int64_t tokens = call.batch * call.seq;
    int64_t longest = 0;
    for (int64_t b = 0; b < call.batch; b++) longest = call.total[b] + 1 > longest ? call.total[b] + 1 : longest;
    call.row_tasks = (call.seq + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    /* With many queries there are tasks enough; with one, its slots are shared out. */
    call.slot_tasks = call.seq > ROWS_PER_TASK ? 1 : (longest + SLOTS_PER_TASK - 1) / SLOTS_PER_TASK;
    if (call.slot_tasks == 1 && call.seq <= ROWS_PER_TASK && longest > 32) call.slot_tasks = 2;
    call.heads_per_task = MAX_PAIRS / ROWS_PER_TASK;
    const size_t rotated = (size_t)(tokens * kernel->heads * call.dim) * sizeof(float);
    const size_t parts = call.slot_tasks > 1 ? (size_t)(tokens * kernel->heads * call.slot_tasks) * sizeof(Partial) : 0;
    char *memory = llmc_scratch(rotated + parts + 64);
    if (memory == NULL) return fail(api, "llmc.cpu: out of memory");
    call.rotated = (float *)memory;
    call.partials = (Partial *)(memory + rotated);
    if (tokens < 8)
        for (int64_t i = 0; i < tokens; i++) append_token(&call, i);
    else if ((status = ORT_PARALLEL_FOR(api)(context, append_token, tokens, 0, &call)) != NULL)
        return status;
    const int64_t tasks = call.batch * kernel->kv_heads * call.row_tasks * call.slot_tasks;
    /* Late queries see more slots: more batches than threads keep all of them busy. */
    status = ORT_PARALLEL_FOR(api)(context, attend_task, tasks, call.seq > ROWS_PER_TASK ? (tasks < 64 ? tasks : 64) : 0, &call);
    if (status == NULL && call.slot_tasks > 1) merge(&call);
    return status;
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    Kernel *kernel = calloc(1, sizeof *kernel);
    (void)op;
    if (kernel == NULL) return fail(api, "llmc.cpu: out of memory");
    kernel->api = api;
    kernel->heads = attribute(api, info, "num_heads");
    kernel->kv_heads = attribute(api, info, "kv_num_heads");
    kernel->window = attribute(api, info, "local_window_size");
    OrtStatus *status = ORT_ATTRIBUTE_FLOAT(api)(info, "scale", &kernel->scale);
    if (status == NULL && (kernel->heads < 1 || kernel->kv_heads < 1 || kernel->heads % kernel->kv_heads))
        status = fail(api, "llmc.cpu: heads are no multiple of the key-value heads");
    if (status != NULL) {
        free(kernel);
        return status;
    }
    *out = kernel;
    return NULL;
}

static void destroy(void *opaque) { free(opaque); }
static const char *name(const OrtCustomOp *op) { return (void)op, "GroupQueryAttention"; }
static size_t inputs(const OrtCustomOp *op) { return (void)op, INPUTS; }
static size_t outputs(const OrtCustomOp *op) { return (void)op, 3; }
static int input_type(const OrtCustomOp *op, size_t i) {
    return (void)op, i == IN_TOTAL || i == IN_CHUNK ? TYPE_INT32 : TYPE_FLOAT;
}
static int output_type(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, TYPE_FLOAT; }
static int input_kind(const OrtCustomOp *op, size_t i) {
    return (void)op, i == IN_KEY || i == IN_VALUE || i >= IN_CHUNK ? OPTIONAL : REQUIRED;
}
static int output_kind(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, REQUIRED; }

const OrtCustomOp llmc_attention = {
    .version = LLMC_ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider,
    .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = output_type,
    .GetOutputTypeCount = outputs, .KernelDestroy = destroy, .GetInputCharacteristic = input_kind,
    .GetOutputCharacteristic = output_kind, .GetInputMemoryType = memory_type, .CreateKernelV2 = create,
    .KernelComputeV2 = compute, .GetStartVersion = first_version, .GetEndVersion = last_version,
};
