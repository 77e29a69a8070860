/* Rows of a block-quantized table, of the domain llmc.cpu.
 *
 *     GatherNBits   y = W[ids]
 *
 * inputs   0 ids [..] int64, negative ones from the end   1 W [n, k], its low plane   2 codes [n, blocks] uint8
 *          3 zero points [n, blocks] uint8 (optional)     4 high plane (optional)     5 row scales [n]
 * outputs  0 y [.., k]
 *
 * W is a weight with codes, as core/stored_weight.h has it; it is read as it is stored.
 */
#include <stdlib.h>

#include "ort/weight_input.h"

#define FEW_ROWS 16 /* below, one thread writes them sooner than several are woken */

typedef struct {
    OrtApi api;
    StoredWeight weight;
    WeightTensors parts; /* where they are constants */
} Kernel;

typedef struct {
    StoredWeight weight;
    const int64_t *ids;
    float *y;
} Gather;

static void gather_row(void *data, size_t index) {
    const Gather *gather = data;
    const int64_t id = gather->ids[index];
    read_row(&gather->weight, id < 0 ? id + gather->weight.n : id, gather->y + index * gather->weight.k);
}

static OrtStatus *read_weight(const Kernel *kernel, OrtKernelContext *context, StoredWeight *weight) {
    OrtApi api = kernel->api;
    WeightTensors parts = kernel->parts;
    TRY(read_input(api, context, OF_WEIGHT, &parts.low));
    TRY(read_input(api, context, OF_SCALES, &parts.scales));
    TRY(read_input(api, context, OF_ZERO_POINTS, &parts.zeros));
    TRY(read_input(api, context, OF_HIGH, &parts.high));
    TRY(read_input(api, context, OF_ROW_SCALES, &parts.row_scales));
    *weight = kernel->weight;
    return take_parts(api, &parts, weight);
}

static OrtStatus *compute(void *opaque, OrtKernelContext *context) {
    const Kernel *kernel = opaque;
    OrtApi api = kernel->api;
    Gather gather = {0};
    Tensor ids = {0};
    TRY(read_weight(kernel, context, &gather.weight));
    TRY(read_input(api, context, OF_IDS, &ids));
    REFUSE(api, ids.rank == 8, "ids must have 1 to 7 axes");
    const size_t rows = (size_t)elements(&ids);
    const int64_t n = gather.weight.n;
    gather.ids = ids.data;
    for (size_t i = 0; i < rows; i++)
        REFUSE(api, gather.ids[i] < -n || gather.ids[i] >= n, "an id is no row of the table");
    ids.dims[ids.rank++] = gather.weight.k;
    TRY(make_output(api, context, 0, &ids, &gather.y));
    if (rows >= FEW_ROWS) return ORT_PARALLEL_FOR(api)(context, gather_row, rows, 0, &gather);
    for (size_t row = 0; row < rows; row++) gather_row(&gather, row);
    return NULL;
}

static OrtStatus *read_constants(Kernel *kernel, const OrtKernelInfo *info) {
    OrtApi api = kernel->api;
    WeightTensors *parts = &kernel->parts;
    TRY(read_format(api, info, &kernel->weight));
    TRY(read_constant(api, info, OF_WEIGHT, &parts->low));
    TRY(read_constant(api, info, OF_SCALES, &parts->scales));
    TRY(read_constant(api, info, OF_ZERO_POINTS, &parts->zeros));
    TRY(read_constant(api, info, OF_HIGH, &parts->high));
    return read_constant(api, info, OF_ROW_SCALES, &parts->row_scales);
}

static OrtStatus *create(const OrtCustomOp *op, OrtApi api, const OrtKernelInfo *info, void **out) {
    (void)op;
    Kernel *kernel = calloc(1, sizeof *kernel);
    REFUSE(api, kernel == NULL, "out of memory");
    kernel->api = api;
    OrtStatus *status = read_constants(kernel, info);
    if (status != NULL)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static void destroy(void *opaque) { free(opaque); }

#define INPUTS "luuUUf"
_Static_assert(sizeof INPUTS == GATHER_INPUTS + 1, "a letter an input");

const Operator llmc_gather = {FUNCTIONS, "GatherNBits", INPUTS, "f"};
