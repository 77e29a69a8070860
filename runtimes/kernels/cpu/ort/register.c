/* The library's entry point. */
#include "ort/operator.h"

#ifdef __GNUC__
__attribute__((visibility("default")))
#endif
OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    OrtApi api = base->GetApi(LLMC_ORT_API_VERSION);
    OrtCustomOpDomain *domain = NULL;
    TRY(ORT_CREATE_DOMAIN(api)("llmc.cpu", &domain));
    TRY(ORT_DOMAIN_ADD(api)(domain, &llmc_matmul.functions));
    TRY(ORT_DOMAIN_ADD(api)(domain, &llmc_gated_matmul.functions));
    TRY(ORT_DOMAIN_ADD(api)(domain, &llmc_gather.functions));
    TRY(ORT_DOMAIN_ADD(api)(domain, &llmc_attention.functions));
    return ORT_OPTIONS_ADD_DOMAIN(api)(options, domain);
}
