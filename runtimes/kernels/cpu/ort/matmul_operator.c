/* Matrix products of the domain llmc.cpu.
 *
 *     MatMulNBits       y = norm(a + skip) * W + bias
 *     GatedMatMulNBits  y = activation(gate) * up, [gate up] = norm(a + skip) * W + bias
 *
 * inputs   0 a [.., k] float     1 W as com.microsoft::MatMulNBits has it   2 scales   3 zero points (optional)
 *          4 bias [n] (optional) 5 gamma [k] of an RMSNorm (optional)       6 skip, shaped like a (optional)
 *          7 offsets [blocks, n] (optional, instead of zero points)
 * outputs  0 y [.., n]           1 a + skip (optional)
 *
 * W, scales, zero points and offsets are constants: they are packed when the session is made.
 */
#include <stdlib.h>

#include "contract.h"
#include "core/product.h"
#include "core/scratch.h"
#include "ort/operator.h"

typedef struct {
    OrtApi api;
    PackedMatrix matrix;
    int activation; /* 0: none, the plain product */
    float epsilon;
    Tensor bias, gamma; /* where they are constants */
} Kernel;

static OrtStatus *read_product(const Kernel *kernel, OrtKernelContext *context, Product *product) {
    OrtApi api = kernel->api;
    const PackedMatrix *m = &kernel->matrix;
    Tensor a = {0}, bias = kernel->bias, gamma = kernel->gamma, skip = {0}, zero_points = {0}, offsets = {0};
    TRY(read_input(api, context, IN_A, &a));
    TRY(read_input(api, context, IN_BIAS, &bias));
    TRY(read_input(api, context, IN_GAMMA, &gamma));
    TRY(read_input(api, context, IN_SKIP, &skip));
    if (!m->has_zeros) {
        TRY(read_input(api, context, IN_ZERO_POINTS, &zero_points));
        TRY(read_input(api, context, IN_OFFSETS, &offsets));
    }
    REFUSE(api, zero_points.rank || offsets.rank, "zero points and offsets must be constants");
    REFUSE(api, a.dims[a.rank - 1] != m->k, "activations do not have the weight's input features");
    REFUSE(api, bias.rank && elements(&bias) != m->n, "the bias does not have the weight's output features");
    REFUSE(api, gamma.rank && elements(&gamma) != m->k, "the norm's weight does not have the activations' features");
    REFUSE(api, skip.rank && !same_shape(&skip, &a), "the residual is not shaped like the activations");
    if (skip.rank) TRY(make_output(api, context, 1, &a, &product->sum));
    product->a = a.data, product->bias = bias.data, product->gamma = gamma.data, product->skip = skip.data;
    product->matrix = m, product->activation = kernel->activation, product->epsilon = kernel->epsilon;
    product->rows = elements(&a) / m->k;
    product->out = a.dims[a.rank - 1] = kernel->activation ? m->n / 2 : m->n;
    return make_output(api, context, 0, &a, &product->y);
}

static OrtStatus *run_product(OrtApi api, OrtKernelContext *context, Product *product) {
    TRY(ORT_PARALLEL_FOR(api)(context, prepare_stretch, (size_t)product->stretches, 0, product));
    return ORT_PARALLEL_FOR(api)(context, product_task, product_tasks(product), 0, product);
}

static OrtStatus *compute(void *opaque, OrtKernelContext *context) {
    const Kernel *kernel = opaque;
    Product product = {0};
    TRY(read_product(kernel, context, &product));
    if (product.rows == 0) return NULL;
    REFUSE(kernel->api, start_product(&product) != 0, "out of memory");
    OrtStatus *status = run_product(kernel->api, context, &product);
    end_product(&product);
    return status;
}

static OrtStatus *read_attributes(Kernel *kernel, const OrtKernelInfo *info) {
    OrtApi api = kernel->api;
    PackedMatrix *m = &kernel->matrix;
    const int64_t bits = attribute(api, info, "bits"), block_size = attribute(api, info, "block_size");
    const int64_t activation = attribute(api, info, "activation");
    OrtStatus *status = ORT_ATTRIBUTE_FLOAT(api)(info, "epsilon", &kernel->epsilon);
    if (status != NULL) ORT_RELEASE_STATUS(api)(status); /* there is none: it is 0 */
    m->k = attribute(api, info, "K");
    m->n = attribute(api, info, "N");
    const int is_shape = m->k >= 1 && m->n >= 1 && m->k <= INT32_MAX && m->n <= INT32_MAX;
    const int is_block = block_size >= 1 && block_size <= INT32_MAX && block_size % BLOCK_MULTIPLE == 0;
    REFUSE(api, !is_shape || !IS_BITS(bits) || !is_block, "unsupported bits, block size or shape");
    REFUSE(api, activation < 0 || activation > GELU_TANH, "unsupported activation");
    REFUSE(api, activation && m->n % (2 * HALF_MULTIPLE), "halves that are no multiple of 16");
    m->bits = (int)bits, m->block_size = (int)block_size, kernel->activation = (int)activation;
    m->blocks = (m->k + m->block_size - 1) / m->block_size;
    return NULL;
}

static OrtStatus *read_constants(Kernel *kernel, const OrtKernelInfo *info) {
    OrtApi api = kernel->api;
    PackedMatrix *m = &kernel->matrix;
    Tensor weight = {0}, scales = {0}, zeros = {0}, offsets = {0};
    TRY(read_constant(api, info, IN_WEIGHT, &weight));
    TRY(read_constant(api, info, IN_SCALES, &scales));
    TRY(read_constant(api, info, IN_ZERO_POINTS, &zeros));
    TRY(read_constant(api, info, IN_OFFSETS, &offsets));
    TRY(read_constant(api, info, IN_BIAS, &kernel->bias));
    TRY(read_constant(api, info, IN_GAMMA, &kernel->gamma));
    const int64_t blocks = m->n * m->blocks;
    REFUSE(api, !weight.rank || !scales.rank, "weights must be constants");
    REFUSE(api, elements(&weight) != blocks * (m->block_size * m->bits / 8), "the weight does not have K x N levels");
    REFUSE(api, elements(&scales) != blocks, "there is not one scale a block");
    REFUSE(api, zeros.rank && elements(&zeros) != m->n * ((m->blocks * m->bits + 7) / 8),
           "there is not one zero point a block");
    REFUSE(api, offsets.rank && elements(&offsets) != blocks, "there is not one offset a block");
    REFUSE(api, zeros.rank && offsets.rank, "a weight has zero points or offsets, not both");
    REFUSE(api, pack_matrix(m, weight.data, scales.data, zeros.data, offsets.data) != 0, "out of memory");
    return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    (void)op;
    Kernel *kernel = calloc(1, sizeof *kernel);
    REFUSE(api, kernel == NULL, "out of memory");
    kernel->api = api;
    OrtStatus *status = read_attributes(kernel, info);
    if (status == NULL) status = read_constants(kernel, info);
    if (status != NULL)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static void destroy(void *opaque) {
    Kernel *kernel = opaque;
    free_matrix(&kernel->matrix);
    free(kernel);
    scratch_free();
}

#define INPUTS "fufUFFFF"
_Static_assert(sizeof INPUTS == MATMUL_INPUTS + 1, "a letter an input");

const Operator llmc_matmul = {FUNCTIONS, "MatMulNBits", INPUTS, "fF"};
const Operator llmc_gated_matmul = {FUNCTIONS, "GatedMatMulNBits", INPUTS, "fF"};
