/* What every operator of the library shares: errors, tensors, and the parts of its declaration that are the same for
 * all. */
#ifndef LLMC_OPERATOR_H
#define LLMC_OPERATOR_H

#include <string.h>

#include "ort/ort_abi.h"

#define TRY(call)                                                                                                    \
    do {                                                                                                             \
        OrtStatus *failure = (call);                                                                                 \
        if (failure != NULL) return failure;                                                                         \
    } while (0)

/* An operator refuses what the contract excludes in one sentence. */
#define REFUSE(api, condition, text)                                                                                 \
    do {                                                                                                             \
        if (condition) return ORT_CREATE_STATUS(api)(1, "llmc.cpu: " text);                                          \
    } while (0)

typedef struct {
    const void *data;
    int type;
    int64_t dims[8];
    size_t rank; /* 0: absent */
} Tensor;

static inline OrtStatus *read_tensor(OrtApi api, const OrtValue *value, Tensor *to) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    size_t rank = 0;
    TRY(ORT_SHAPE(api)(value, &info));
    OrtStatus *status = ORT_ELEMENT_TYPE(api)(info, &to->type);
    if (status == NULL) status = ORT_DIM_COUNT(api)(info, &rank);
    const int is_small = rank >= 1 && rank <= 8;
    if (status == NULL && is_small) status = ORT_DIMS(api)(info, to->dims, rank);
    ORT_RELEASE_SHAPE(api)(info);
    TRY(status);
    REFUSE(api, !is_small, "inputs must have 1 to 8 axes");
    to->rank = rank;
    return ORT_TENSOR_DATA(api)((OrtValue *)value, (void **)&to->data);
}

/* Read an input, unless it is absent. Its shape is asked for, which costs ONNX Runtime two allocations, where it is
 * not known: `to` is then what read_constant made of it. */
static inline OrtStatus *read_input(OrtApi api, OrtKernelContext *context, size_t index, Tensor *to) {
    size_t count = 0;
    const OrtValue *value = NULL;
    TRY(ORT_INPUT_COUNT(api)(context, &count));
    if (index < count) TRY(ORT_INPUT(api)(context, index, &value));
    if (value == NULL) return NULL;
    return to->rank ? ORT_TENSOR_DATA(api)((OrtValue *)value, (void **)&to->data) : read_tensor(api, value, to);
}

/* Read an input that is known when the session is made; absent where it is not. */
static inline OrtStatus *read_constant(OrtApi api, const OrtKernelInfo *info, size_t index, Tensor *to) {
    int is_constant = 0;
    const OrtValue *value = NULL;
    OrtStatus *status = ORT_CONSTANT_INPUT(api)(info, index, &is_constant, &value);
    if (status != NULL) ORT_RELEASE_STATUS(api)(status); /* the node has fewer inputs */
    return status != NULL || !is_constant || value == NULL ? NULL : read_tensor(api, value, to);
}

/* Make an output; its data is NULL where nothing reads it. */
static inline OrtStatus *make_output(OrtApi api, OrtKernelContext *context, size_t index, const Tensor *shape,
                                     float **data) {
    OrtValue *value = NULL;
    TRY(ORT_OUTPUT(api)(context, index, shape->dims, shape->rank, &value));
    return value == NULL ? NULL : ORT_TENSOR_DATA(api)(value, (void **)data);
}

static inline int64_t elements(const Tensor *tensor) {
    int64_t count = 1;
    for (size_t i = 0; i < tensor->rank; i++) count *= tensor->dims[i];
    return count;
}

static inline int same_shape(const Tensor *a, const Tensor *b) {
    int same = a->rank == b->rank;
    for (size_t i = 0; same && i < a->rank; i++) same = a->dims[i] == b->dims[i];
    return same;
}

/* An integer attribute; 0 where there is none. */
static inline int64_t attribute(OrtApi api, const OrtKernelInfo *info, const char *name) {
    int64_t value = 0;
    OrtStatus *status = ORT_ATTRIBUTE_INT(api)(info, name, &value);
    if (status) ORT_RELEASE_STATUS(api)(status);
    return value;
}

/* What an operator is called, and a letter for each input and output: f float, u uint8, i int32, l int64, a any
 * type; a capital: optional. */
typedef struct {
    OrtCustomOp functions;
    const char *name, *inputs, *outputs;
} Operator;

static inline const Operator *operator_of(const OrtCustomOp *op) { return (const Operator *)op; }
static inline int type_of(char letter) {
    static const char letters[] = "fFuUiIlLaA";
    static const int types[] = {TYPE_FLOAT, TYPE_UINT8, TYPE_INT32, TYPE_INT64, TYPE_ANY};
    return types[(strchr(letters, letter) - letters) / 2];
}
static inline int kind_of(char letter) { return letter < 'a' ? OPTIONAL : REQUIRED; }

static inline const char *name(const OrtCustomOp *op) { return operator_of(op)->name; }
static inline size_t inputs(const OrtCustomOp *op) { return strlen(operator_of(op)->inputs); }
static inline size_t outputs(const OrtCustomOp *op) { return strlen(operator_of(op)->outputs); }
static inline int input_type(const OrtCustomOp *op, size_t i) { return type_of(operator_of(op)->inputs[i]); }
static inline int input_kind(const OrtCustomOp *op, size_t i) { return kind_of(operator_of(op)->inputs[i]); }
static inline int output_type(const OrtCustomOp *op, size_t i) { return type_of(operator_of(op)->outputs[i]); }
static inline int output_kind(const OrtCustomOp *op, size_t i) { return kind_of(operator_of(op)->outputs[i]); }
static inline int memory_type(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static inline const char *provider(const OrtCustomOp *op) { return (void)op, NULL; }
/* An operator is the same in each version of its domain, those that do not exist yet included. */
static inline int first_version(const OrtCustomOp *op) { return (void)op, 1; }
static inline int last_version(const OrtCustomOp *op) { return (void)op, INT32_MAX; }

/* Of the functions above, and of the file's own create, compute and destroy. */
/* clang-format off */
#define FUNCTIONS {                                                                                                  \
    .version = LLMC_ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider,                          \
    .GetInputType = input_type, .GetInputTypeCount = inputs, .GetInputCharacteristic = input_kind,                   \
    .GetOutputType = output_type, .GetOutputTypeCount = outputs, .GetOutputCharacteristic = output_kind,             \
    .GetInputMemoryType = memory_type, .CreateKernelV2 = create, .KernelComputeV2 = compute,                         \
    .KernelDestroy = destroy, .GetStartVersion = first_version, .GetEndVersion = last_version }
/* clang-format on */

extern const Operator llmc_matmul, llmc_gated_matmul, llmc_gather, llmc_attention;

#endif
