/* A block-quantized weight among an operator's attributes and inputs. */
#ifndef LLMC_WEIGHT_INPUT_H
#define LLMC_WEIGHT_INPUT_H

#include "contract.h"
#include "core/stored_weight.h"
#include "ort/operator.h"

/* Parts of a weight; those that are absent have rank 0. */
typedef struct {
    Tensor low, high, scales, row_scales, zeros, offsets;
} WeightTensors;

/* Read the attributes that say what a weight is: K, N, bits and block_size. */
static inline OrtStatus *read_format(OrtApi api, const OrtKernelInfo *info, StoredWeight *w) {
    const int64_t bits = attribute(api, info, "bits"), block_size = attribute(api, info, "block_size");
    w->k = attribute(api, info, "K");
    w->n = attribute(api, info, "N");
    const int is_shape = w->k >= 1 && w->n >= 1 && w->k <= INT32_MAX && w->n <= INT32_MAX;
    const int is_block = block_size >= 1 && block_size <= INT32_MAX && block_size % BLOCK_MULTIPLE == 0;
    REFUSE(api, !is_shape || !IS_CODED_BITS(bits) || !is_block, "unsupported bits, block size or shape");
    w->bits = (int)bits, w->block_size = (int)block_size;
    w->blocks = (w->k + block_size - 1) / block_size;
    return NULL;
}

/* Take the parts of a weight whose attributes are known; what does not fit is refused. */
static inline OrtStatus *take_parts(OrtApi api, const WeightTensors *parts, StoredWeight *w) {
    const int has_codes = parts->row_scales.rank > 0, low = has_codes ? LOW_BITS(w->bits) : w->bits;
    const int64_t blocks = w->n * w->blocks, zeros = has_codes ? blocks : w->n * ((w->blocks * w->bits + 7) / 8);
    const int64_t high = parts->high.rank ? elements(&parts->high) : 0;
    REFUSE(api, !has_codes && !IS_BITS(w->bits), "unsupported bits, block size or shape");
    REFUSE(api, parts->scales.type != (has_codes ? TYPE_UINT8 : TYPE_FLOAT),
           "scales are codes, uint8, beside row scales that are constants, and float without them");
    REFUSE(api, elements(&parts->low) != blocks * (w->block_size * low / 8), "the weight does not have K x N levels");
    REFUSE(api, high != blocks * (w->block_size * (w->bits - low) / 8), "the high plane does not have K x N levels");
    REFUSE(api, elements(&parts->scales) != blocks, "there is not one scale a block");
    REFUSE(api, has_codes && elements(&parts->row_scales) != w->n, "there is not one row scale a row");
    REFUSE(api, parts->zeros.rank && elements(&parts->zeros) != zeros, "there is not one zero point a block");
    REFUSE(api, parts->offsets.rank && elements(&parts->offsets) != blocks, "there is not one offset a block");
    REFUSE(api, parts->offsets.rank && (parts->zeros.rank || has_codes),
           "a weight has zero points or offsets, not both, and beside row scales no offsets");
    w->low = parts->low.data, w->high = parts->high.data, w->zeros = parts->zeros.data;
    w->offsets = parts->offsets.data, w->row_scales = parts->row_scales.data;
    w->scales = has_codes ? NULL : parts->scales.data;
    w->codes = has_codes ? parts->scales.data : NULL;
    return NULL;
}

#endif
