/* The part of ONNX Runtime's C interface that the operator library uses.
 *
 * The interface is a table of function pointers that only ever grows at its end, so an index is valid in every later
 * version. Names and order: onnxruntime_c_api.h, API version 17 (ONNX Runtime 1.17).
 */
#ifndef LLMC_ORT_ABI_H
#define LLMC_ORT_ABI_H

#include <stddef.h>
#include <stdint.h>

#define LLMC_ORT_API_VERSION 17

typedef struct OrtStatus OrtStatus;
typedef struct OrtValue OrtValue;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef void *const *OrtApi; /* the table */

typedef struct {
    OrtApi (*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

enum { TYPE_ANY = 0, TYPE_FLOAT = 1, TYPE_UINT8 = 2, TYPE_INT32 = 6, TYPE_INT64 = 7 };
enum { REQUIRED = 0, OPTIONAL = 1 };

typedef struct OrtCustomOp OrtCustomOp;
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, OrtApi, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);
    int (*GetInputType)(const OrtCustomOp *, size_t);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *, OrtKernelContext *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, OrtApi, const OrtKernelInfo *, void **);
    OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, void *);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *); /* the last one that version 17 reads */
};

/* Each accessor names the entry of the table and its type. */
#define ORT_CREATE_STATUS(api) ((OrtStatus * (*)(int, const char *))(api)[0])
#define ORT_CREATE_DOMAIN(api) ((OrtStatus * (*)(const char *, OrtCustomOpDomain **))(api)[26])
#define ORT_DOMAIN_ADD(api) ((OrtStatus * (*)(OrtCustomOpDomain *, const OrtCustomOp *))(api)[27])
#define ORT_OPTIONS_ADD_DOMAIN(api) ((OrtStatus * (*)(OrtSessionOptions *, OrtCustomOpDomain *))(api)[28])
#define ORT_TENSOR_DATA(api) ((OrtStatus * (*)(OrtValue *, void **))(api)[51])
#define ORT_ELEMENT_TYPE(api) ((OrtStatus * (*)(const OrtTensorTypeAndShapeInfo *, int *))(api)[60])
#define ORT_DIM_COUNT(api) ((OrtStatus * (*)(const OrtTensorTypeAndShapeInfo *, size_t *))(api)[61])
#define ORT_DIMS(api) ((OrtStatus * (*)(const OrtTensorTypeAndShapeInfo *, int64_t *, size_t))(api)[62])
#define ORT_SHAPE(api) ((OrtStatus * (*)(const OrtValue *, OrtTensorTypeAndShapeInfo **))(api)[65])
#define ORT_ATTRIBUTE_FLOAT(api) ((OrtStatus * (*)(const OrtKernelInfo *, const char *, float *))(api)[85])
#define ORT_ATTRIBUTE_INT(api) ((OrtStatus * (*)(const OrtKernelInfo *, const char *, int64_t *))(api)[86])
#define ORT_INPUT_COUNT(api) ((OrtStatus * (*)(const OrtKernelContext *, size_t *))(api)[88])
#define ORT_INPUT(api) ((OrtStatus * (*)(const OrtKernelContext *, size_t, const OrtValue **))(api)[90])
#define ORT_OUTPUT(api) ((OrtStatus * (*)(OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **))(api)[91])
#define ORT_RELEASE_STATUS(api) ((void (*)(OrtStatus *))(api)[93])
#define ORT_RELEASE_SHAPE(api) ((void (*)(OrtTensorTypeAndShapeInfo *))(api)[99])
#define ORT_CONSTANT_INPUT(api) ((OrtStatus * (*)(const OrtKernelInfo *, size_t, int *, const OrtValue **))(api)[249])
#define ORT_PARALLEL_FOR(api)                                                                                        \
    ((OrtStatus * (*)(const OrtKernelContext *, void (*)(void *, size_t), size_t, size_t, void *))(api)[274])

#endif
