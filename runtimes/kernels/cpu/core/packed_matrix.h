/* A block-quantized weight in the order in which products read it.
 *
 * It is packed in tiles of as many output features as a vector has lanes (t below):
 *
 *     tile     levels of block 0, of block 1, ... | parameters of block 0, of 1, ... (| row scales) | up to 64 bytes
 *     levels   one step of 32 input features after the other, in the order that isa/dot_*.h draws
 *
 * Of a weight with scales, a block's parameters are its scales [t] (, zero points [t]), float16: scales times
 * 2^-exponent of the whole matrix, so that none underflows; zero points of blocks with an offset are no integers. Of
 * one with codes they are its codes [t] (, zero points [t]), uint8, and its row scales are float32.
 */
#ifndef LLMC_PACKED_MATRIX_H
#define LLMC_PACKED_MATRIX_H

#include "core/stored_weight.h"

typedef struct {
    int64_t k, n;      /* input and output features */
    int64_t blocks;    /* blocks of a row */
    int block_size;    /* a multiple of BLOCK_MULTIPLE */
    int bits;          /* of a level */
    int has_codes;     /* scales and zero points are codes of 8 bits */
    int has_zeros;     /* zero points differ from 2^(bits-1) and are stored */
    float rescale;     /* 2^exponent; of codes 1 */
    size_t tile_bytes; /* distance of two tiles */
    uint8_t *data;     /* tiles */
} PackedMatrix;

size_t data_bytes(const PackedMatrix *m);      /* levels of a block of a tile */
size_t parameter_bytes(const PackedMatrix *m); /* parameters of a block of a tile */

int pack_matrix(PackedMatrix *m, const StoredWeight *w); /* -1: no memory */
void free_matrix(PackedMatrix *m);

#endif
