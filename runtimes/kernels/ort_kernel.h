/* What every operator of the library shares: errors, inputs, scratch memory, and the parts of its declaration that are
 * the same for all. */
#ifndef LLMC_ORT_KERNEL_H
#define LLMC_ORT_KERNEL_H

#include "ort_abi.h"

/* Memory of this thread, at least `size` bytes, aligned to 64; valid until the thread asks again. */
void *llmc_scratch(size_t size);

static inline OrtStatus *fail(OrtApi api, const char *text) { return ORT_CREATE_STATUS(api)(1, text); }

static inline OrtStatus *read_shape(OrtApi api, const OrtValue *value, int64_t dims[8], size_t *rank) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    OrtStatus *status = ORT_SHAPE(api)(value, &info);
    if (status == NULL) status = ORT_DIM_COUNT(api)(info, rank);
    if (status == NULL && (*rank < 1 || *rank > 8)) status = fail(api, "llmc.cpu: activations must have 1 to 8 axes");
    if (status == NULL) status = ORT_DIMS(api)(info, dims, *rank);
    if (info) ORT_RELEASE_SHAPE(api)(info);
    return status;
}

static inline const float *optional_input(OrtApi api, OrtKernelContext *context, size_t index) {
    size_t count = 0;
    const OrtValue *value = NULL;
    void *data = NULL;
    if (ORT_INPUT_COUNT(api)(context, &count) != NULL || index >= count) return NULL;
    if (ORT_INPUT(api)(context, index, &value) != NULL || value == NULL) return NULL;
    if (ORT_TENSOR_DATA(api)((OrtValue *)value, &data) != NULL) return NULL;
    return data;
}

static inline int64_t attribute(OrtApi api, const OrtKernelInfo *info, const char *name) {
    int64_t value = 0;
    OrtStatus *status = ORT_ATTRIBUTE_INT(api)(info, name, &value);
    if (status) ORT_RELEASE_STATUS(api)(status);
    return value;
}

static inline const char *provider(const OrtCustomOp *op) { return (void)op, NULL; }
static inline int memory_type(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static inline int first_version(const OrtCustomOp *op) { return (void)op, 1; }
static inline int last_version(const OrtCustomOp *op) { return (void)op, 0x7fffffff; }


extern const OrtCustomOp llmc_matmul, llmc_gated_matmul, llmc_attention;

#endif
