/* Matrix products of the domain llmc.cpu.
 *
 *     MatMulNBits       y = norm(a + skip) * W + bias
 *     GatedMatMulNBits  y = activation(gate) * up, [gate up] = norm(a + skip) * W
 *
 * inputs   0 a [.., k] float     1 W as com.microsoft::MatMulNBits has it   2 scales   3 zero points (optional)
 *          4 bias [n] (optional) 5 gamma [k] of an RMSNorm (optional)       6 skip, shaped like a (optional)
 *          7 offsets [blocks, n] (optional, instead of zero points)
 * outputs  0 y [.., n]           1 a + skip (optional)
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "block_matmul.h"
#include "ort_kernel.h"
#include "simd.h"

enum { IN_A, IN_WEIGHT, IN_SCALES, IN_ZEROS, IN_BIAS, IN_GAMMA, IN_SKIP, IN_OFFSETS, INPUTS };
enum { SILU = 1, GELU_TANH = 2 };
#define ROWS_PER_TASK 64

typedef struct {
    OrtApi api;
    PackedMatrix matrix;
    int activation; /* 0: none, the plain product */
    float epsilon;
} Kernel;

typedef struct {
    const Kernel *kernel;
    QuantizedRows rows;
    const float *a, *bias, *gamma, *skip;
    float *sum, *y;
    int64_t count, out, row_tasks;
} Call;

static inline __m512 activate(int activation, __m512 x) {
    __m512 z = x;
    if (activation == GELU_TANH) {
        /* 0.5 x (1 + tanh(u)) = x * sigmoid(2u) */
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        z = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(1.5957691216f));
    }
    __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), z));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

static void prepare_row(void *data, size_t row) {
    const Call *call = data;
    const Kernel *kernel = call->kernel;
    const int64_t k = kernel->matrix.k;
    const float *a = call->a + row * k;
    if (call->gamma == NULL && call->skip == NULL) {
        quantize_row(&kernel->matrix, a, &call->rows, (int64_t)row);
        return;
    }
    float normed[k];
    const float *skip = call->skip ? call->skip + row * k : NULL;
    float *sum = call->sum ? call->sum + row * k : NULL;
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += 16) {
        const __mmask16 mask = first_lanes(k - i);
        __m512 x = _mm512_maskz_loadu_ps(mask, a + i);
        if (skip) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, skip + i));
        if (sum) _mm512_mask_storeu_ps(sum + i, mask, x);
        _mm512_mask_storeu_ps(normed + i, mask, x);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)k + kernel->epsilon));
    for (int64_t i = 0; i < k && call->gamma; i += 16) {
        const __mmask16 mask = first_lanes(k - i);
        __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, normed + i), inverse);
        _mm512_mask_storeu_ps(normed + i, mask, _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, call->gamma + i)));
    }
    quantize_row(&kernel->matrix, normed, &call->rows, (int64_t)row);
}

static void finish_tile(const Call *call, int64_t tile, int64_t first, int64_t count, const float *values,
                        const float *up) {
    const int64_t column = tile * TILE;
    const __mmask16 mask = first_lanes(call->out - column);
    const __m512 none = _mm512_setzero_ps();
    const __m512 bias = call->bias ? _mm512_maskz_loadu_ps(mask, call->bias + column) : none;
    const __m512 up_bias = call->bias && up ? _mm512_maskz_loadu_ps(mask, call->bias + call->out + column) : none;
    for (int64_t r = 0; r < count; r++) {
        __m512 v = _mm512_add_ps(_mm512_loadu_ps(values + r * TILE), bias);
        if (up) {
            const __m512 other = _mm512_add_ps(_mm512_loadu_ps(up + r * TILE), up_bias);
            v = _mm512_mul_ps(activate(call->kernel->activation, v), other);
        }
        _mm512_mask_storeu_ps(call->y + (first + r) * call->out + column, mask, v);
    }
}

static void multiply_task(void *data, size_t index) {
    const Call *call = data;
    const PackedMatrix *m = &call->kernel->matrix;
    const int64_t tile = (int64_t)index / call->row_tasks;
    const int64_t first = (int64_t)index % call->row_tasks * ROWS_PER_TASK;
    const int64_t count = call->count - first < ROWS_PER_TASK ? call->count - first : ROWS_PER_TASK;
    float values[ROWS_PER_TASK * TILE], up[ROWS_PER_TASK * TILE];
    multiply_tile(m, &call->rows, tile, first, count, values, TILE);
    if (call->kernel->activation) multiply_tile(m, &call->rows, tile + call->out / TILE, first, count, up, TILE);
    finish_tile(call, tile, first, count, values, call->kernel->activation ? up : NULL);
}

static OrtStatus *compute(void *opaque, OrtKernelContext *context) {
    const Kernel *kernel = opaque;
    OrtApi api = kernel->api;
    const PackedMatrix *m = &kernel->matrix;
    const OrtValue *a = NULL;
    OrtValue *y = NULL, *sum = NULL;
    int64_t dims[8], rows = 1;
    size_t rank = 0;
    OrtStatus *status = ORT_INPUT(api)(context, IN_A, &a);
    if (status == NULL) status = read_shape(api, a, dims, &rank);
    if (status != NULL) return status;
    if (dims[rank - 1] != m->k) return fail(api, "llmc.cpu: activations do not have the weight's input features");
    if (!m->has_zeros && (optional_input(api, context, IN_ZEROS) || optional_input(api, context, IN_OFFSETS)))
        return fail(api, "llmc.cpu: zero points and offsets must be constants");
    for (size_t i = 0; i + 1 < rank; i++) rows *= dims[i];
    Call call = {.kernel = kernel, .count = rows, .out = kernel->activation ? m->n / 2 : m->n};
    call.a = optional_input(api, context, IN_A);
    call.bias = optional_input(api, context, IN_BIAS);
    call.gamma = optional_input(api, context, IN_GAMMA);
    call.skip = optional_input(api, context, IN_SKIP);
    if (call.skip != NULL) {
        status = ORT_OUTPUT(api)(context, 1, dims, rank, &sum);
        if (status == NULL && sum != NULL) status = ORT_TENSOR_DATA(api)(sum, (void **)&call.sum);
        if (status != NULL) return status;
    }
    dims[rank - 1] = call.out;
    status = ORT_OUTPUT(api)(context, 0, dims, rank, &y);
    if (status == NULL) status = ORT_TENSOR_DATA(api)(y, (void **)&call.y);
    if (status != NULL || rows == 0) return status;

    const size_t blocks = (size_t)rows * m->blocks;
    char *memory = llmc_scratch(blocks * (m->block_size + 2 * sizeof(float)) + 256);
    if (memory == NULL) return fail(api, "llmc.cpu: out of memory");
    call.rows.scales = (float *)memory;
    call.rows.sums = call.rows.scales + blocks;
    call.rows.values = (int8_t *)(call.rows.sums + blocks);
    if (rows < 16)
        for (int64_t row = 0; row < rows; row++) prepare_row(&call, row);
    else if ((status = ORT_PARALLEL_FOR(api)(context, prepare_row, rows, 0, &call)) != NULL)
        return status;
    call.row_tasks = (rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    const int64_t tiles = (call.out + TILE - 1) / TILE;
    return ORT_PARALLEL_FOR(api)(context, multiply_task, tiles * call.row_tasks, 0, &call);
}

static OrtStatus *constant(OrtApi api, const OrtKernelInfo *info, size_t index, const void **data) {
    int is_constant = 0;
    const OrtValue *value = NULL;
    *data = NULL;
    OrtStatus *status = ORT_CONSTANT_INPUT(api)(info, index, &is_constant, &value);
    if (status != NULL || !is_constant || value == NULL) {
        if (status) ORT_RELEASE_STATUS(api)(status);
        return index == IN_ZEROS || index == IN_OFFSETS ? NULL : fail(api, "llmc.cpu: weights must be constants");
    }
    return ORT_TENSOR_DATA(api)((OrtValue *)value, (void **)data);
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    const void *weight, *scales, *zeros, *offsets;
    OrtStatus *status = constant(api, info, IN_WEIGHT, &weight);
    if (status == NULL) status = constant(api, info, IN_SCALES, &scales);
    if (status == NULL) status = constant(api, info, IN_ZEROS, &zeros);
    if (status == NULL) status = constant(api, info, IN_OFFSETS, &offsets);
    if (status != NULL) return status;
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (kernel == NULL) return fail(api, "llmc.cpu: out of memory");
    (void)op;
    kernel->api = api;
    kernel->activation = (int)attribute(api, info, "activation");
    if ((status = ORT_ATTRIBUTE_FLOAT(api)(info, "epsilon", &kernel->epsilon)) != NULL) {
        ORT_RELEASE_STATUS(api)(status);
        kernel->epsilon = 0.0f;
    }
    PackedMatrix *m = &kernel->matrix;
    m->k = attribute(api, info, "K");
    m->n = attribute(api, info, "N");
    m->bits = (int)attribute(api, info, "bits");
    m->block_size = (int)attribute(api, info, "block_size");
    if (m->k < 1 || m->n < 1 || (m->bits != 4 && m->bits != 8) || m->block_size < LANE || m->block_size % LANE) {
        free(kernel);
        return fail(api, "llmc.cpu: unsupported bits, block size or shape");
    }
    if (kernel->activation < 0 || kernel->activation > GELU_TANH || (kernel->activation && m->n % (2 * TILE))) {
        free(kernel);
        return fail(api, "llmc.cpu: unsupported activation, or halves that are no multiple of 16");
    }
    m->blocks = (m->k + m->block_size - 1) / m->block_size;
    if (pack_matrix(m, weight, scales, zeros, offsets) != 0) {
        free(kernel);
        return fail(api, "llmc.cpu: out of memory");
    }
    *out = kernel;
    return NULL;
}

static void destroy(void *opaque) {
    Kernel *kernel = opaque;
    free_matrix(&kernel->matrix);
    free(kernel);
}

static const char *name_plain(const OrtCustomOp *op) { return (void)op, "MatMulNBits"; }
static const char *name_gated(const OrtCustomOp *op) { return (void)op, "GatedMatMulNBits"; }
static size_t inputs(const OrtCustomOp *op) { return (void)op, INPUTS; }
static size_t outputs(const OrtCustomOp *op) { return (void)op, 2; }
static int input_type(const OrtCustomOp *op, size_t i) {
    return (void)op, i == IN_WEIGHT || i == IN_ZEROS ? TYPE_UINT8 : TYPE_FLOAT;
}
static int output_type(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, TYPE_FLOAT; }
static int input_kind(const OrtCustomOp *op, size_t i) { return (void)op, i >= IN_ZEROS ? OPTIONAL : REQUIRED; }
static int output_kind(const OrtCustomOp *op, size_t i) { return (void)op, i ? OPTIONAL : REQUIRED; }
#define OPERATOR(get_name)                                                                                  \
    {                                                                                                       \
        .version = LLMC_ORT_API_VERSION, .GetName = get_name, .GetExecutionProviderType = provider,         \
        .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = output_type,              \
        .GetOutputTypeCount = outputs, .KernelDestroy = destroy, .GetInputCharacteristic = input_kind,      \
        .GetOutputCharacteristic = output_kind, .GetInputMemoryType = memory_type, .CreateKernelV2 = create, \
        .KernelComputeV2 = compute, .GetStartVersion = first_version, .GetEndVersion = last_version,        \
    }

const OrtCustomOp llmc_matmul = OPERATOR(name_plain), llmc_gated_matmul = OPERATOR(name_gated);
