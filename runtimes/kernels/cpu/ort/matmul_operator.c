/* Matrix products of the domain llmc.cpu.
 *
 *     MatMulNBits       y = norm(a + skip) * W + bias
 *     GatedMatMulNBits  y = activation(gate) * up, [gate up] = norm(a + skip) * W + bias
 *
 * inputs   0 a [.., k] float     1 W, its low plane               2 scales, float or uint8 3 zero points (optional)
 *          4 bias [n] (optional) 5 gamma [k] of a norm (optional)  6 skip, like a (opt.)   7 offsets (optional)
 *          8 high plane (opt.)   9 row scales [n] (optional)
 * outputs  0 y [.., n]           1 a + skip (optional)
 *
 * With row scales W is a weight with codes, without them one with scales, as core/stored_weight.h has them. Its parts
 * are constants: they are packed when the session is made.
 */
#include <stdlib.h>

#include "contract.h"
#include "core/product.h"
#include "core/scratch.h"
#include "ort/operator.h"
#include "ort/weight_input.h"

typedef struct {
    OrtApi api;
    PackedMatrix matrix;
    int activation; /* 0: none, the plain product */
    int planes;     /* of the activations */
    float epsilon;
    Tensor bias, gamma; /* where they are constants */
} Kernel;

/* What is left out of a packed weight, because it is no constant, must not be there at all. */
static OrtStatus *refuse_fed(const Kernel *kernel, OrtKernelContext *context) {
    OrtApi api = kernel->api;
    const PackedMatrix *m = &kernel->matrix;
    Tensor zero_points = {0}, offsets = {0}, row_scales = {0};
    if (!m->has_zeros) TRY(read_input(api, context, IN_ZERO_POINTS, &zero_points));
    if (!m->has_zeros) TRY(read_input(api, context, IN_OFFSETS, &offsets));
    if (!m->has_codes) TRY(read_input(api, context, IN_ROW_SCALES, &row_scales));
    REFUSE(api, zero_points.rank || offsets.rank, "zero points and offsets must be constants");
    REFUSE(api, row_scales.rank, "row scales must be constants");
    return NULL;
}

static OrtStatus *read_product(const Kernel *kernel, OrtKernelContext *context, Product *product) {
    OrtApi api = kernel->api;
    const PackedMatrix *m = &kernel->matrix;
    Tensor a = {0}, bias = kernel->bias, gamma = kernel->gamma, skip = {0};
    TRY(read_input(api, context, IN_A, &a));
    TRY(read_input(api, context, IN_BIAS, &bias));
    TRY(read_input(api, context, IN_GAMMA, &gamma));
    TRY(read_input(api, context, IN_SKIP, &skip));
    TRY(refuse_fed(kernel, context));
    REFUSE(api, a.dims[a.rank - 1] != m->k, "activations do not have the weight's input features");
    REFUSE(api, bias.rank && elements(&bias) != m->n, "the bias does not have the weight's output features");
    REFUSE(api, gamma.rank && elements(&gamma) != m->k, "the norm's weight does not have the activations' features");
    REFUSE(api, skip.rank && !same_shape(&skip, &a), "the residual is not shaped like the activations");
    if (skip.rank) TRY(make_output(api, context, 1, &a, &product->sum));
    product->a = a.data, product->bias = bias.data, product->gamma = gamma.data, product->skip = skip.data;
    product->quantized.planes = kernel->planes;
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

static OrtStatus *read_attributes(Kernel *kernel, const OrtKernelInfo *info, StoredWeight *weight) {
    OrtApi api = kernel->api;
    const int64_t activation = attribute(api, info, "activation"), bits = attribute(api, info, "activation_bits");
    OrtStatus *status = ORT_ATTRIBUTE_FLOAT(api)(info, "epsilon", &kernel->epsilon);
    if (status != NULL) ORT_RELEASE_STATUS(api)(status); /* there is none: it is 0 */
    TRY(read_format(api, info, weight));
    REFUSE(api, activation < 0 || activation > GELU_TANH, "unsupported activation");
    REFUSE(api, activation && weight->n % (2 * HALF_MULTIPLE), "halves that are no multiple of 16");
    REFUSE(api, bits && !IS_ACTIVATION_BITS(bits), "activations of 8 or 16 bits are multiplied, no others");
    kernel->activation = (int)activation, kernel->planes = bits == 16 ? 2 : 1;
    return NULL;
}

static OrtStatus *read_constants(Kernel *kernel, const OrtKernelInfo *info, StoredWeight *weight) {
    OrtApi api = kernel->api;
    WeightTensors parts = {0};
    TRY(read_constant(api, info, IN_WEIGHT, &parts.low));
    TRY(read_constant(api, info, IN_HIGH, &parts.high));
    TRY(read_constant(api, info, IN_SCALES, &parts.scales));
    TRY(read_constant(api, info, IN_ROW_SCALES, &parts.row_scales));
    TRY(read_constant(api, info, IN_ZERO_POINTS, &parts.zeros));
    TRY(read_constant(api, info, IN_OFFSETS, &parts.offsets));
    TRY(read_constant(api, info, IN_BIAS, &kernel->bias));
    TRY(read_constant(api, info, IN_GAMMA, &kernel->gamma));
    REFUSE(api, !parts.low.rank || !parts.scales.rank, "weights must be constants");
    TRY(take_parts(api, &parts, weight));
    REFUSE(api, pack_matrix(&kernel->matrix, weight) != 0, "out of memory");
    return NULL;
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    (void)op;
    Kernel *kernel = calloc(1, sizeof *kernel);
    StoredWeight weight = {0};
    REFUSE(api, kernel == NULL, "out of memory");
    kernel->api = api;
    OrtStatus *status = read_attributes(kernel, info, &weight);
    if (status == NULL) status = read_constants(kernel, info, &weight);
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

#define INPUTS "fuaUFFFFUF"
_Static_assert(sizeof INPUTS == MATMUL_INPUTS + 1, "a letter an input");

const Operator llmc_matmul = {FUNCTIONS, "MatMulNBits", INPUTS, "fF"};
const Operator llmc_gated_matmul = {FUNCTIONS, "GatedMatMulNBits", INPUTS, "fF"};
