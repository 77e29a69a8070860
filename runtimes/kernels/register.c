/* The library's entry point, and the memory that its operators work in. */
#include <stdlib.h>

#include "ort_kernel.h"

static _Thread_local struct {
    void *memory;
    size_t size;
} scratch;

void *llmc_scratch(size_t size) {
    if (scratch.size < size) {
        free(scratch.memory);
        scratch.memory = aligned_alloc(64, (size + 4095) / 4096 * 4096);
        scratch.size = scratch.memory ? (size + 4095) / 4096 * 4096 : 0;
    }
    return scratch.memory;
}

__attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                    const OrtApiBase *base) {
    OrtApi api = base->GetApi(LLMC_ORT_API_VERSION);
    OrtCustomOpDomain *domain = NULL;
    OrtStatus *status = ORT_CREATE_DOMAIN(api)("llmc.cpu", &domain);
    if (status == NULL) status = ORT_DOMAIN_ADD(api)(domain, &llmc_matmul);
    if (status == NULL) status = ORT_DOMAIN_ADD(api)(domain, &llmc_gated_matmul);
    if (status == NULL) status = ORT_DOMAIN_ADD(api)(domain, &llmc_attention);
    if (status == NULL) status = ORT_OPTIONS_ADD_DOMAIN(api)(options, domain);
    return status;
}
