/* Products of float activations with block-quantized weights.
 *
 * Weights are packed in tiles of as many output features as a vector has lanes (t below):
 *
 *     tile     levels of block 0, of block 1, ... | scales [t] (, zeros [t]) of block 0, of 1, ... | up to 64 bytes
 *     levels   one step of 32 input features after the other, in the order that isa/dot_*.h draws
 *
 * Scales are float16 times 2^-exponent of the whole matrix, so that none underflows; zero points are float16: those
 * of blocks with an offset are no integers.
 *
 * Floor of a decode step: the packed bytes from memory, bits / 8 + 2 / block_size (with zero points 4 / block_size) a
 * weight; of a prompt: k n multiplications a token, 64 an instruction of AVX-512 VNNI. Reached with that, by one core
 * of an AMD EPYC (Zen 5) on 576 x 3072 of 4 bits with offsets, in its cache: 108 GB/s for one row, 366e9
 * multiplications a second for 64.
 */
#ifndef LLMC_BLOCK_MATMUL_H
#define LLMC_BLOCK_MATMUL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t k, n;      /* input and output features */
    int64_t blocks;    /* blocks of a row */
    int block_size;    /* a multiple of BLOCK_MULTIPLE */
    int bits;          /* 4 or 8 */
    int has_zeros;     /* zero points differ from 2^(bits-1) and are stored */
    float rescale;     /* 2^exponent */
    size_t tile_bytes; /* distance of two tiles */
    uint8_t *data;     /* tiles */
} PackedMatrix;

/* Activations as int8 with one scale and one sum per block. */
typedef struct {
    int8_t *values; /* [rows, blocks * block_size] */
    float *scales;  /* [rows, blocks] */
    float *sums;    /* [rows, blocks], of the integers */
} QuantizedRows;

int pack_matrix(PackedMatrix *m, const uint8_t *b, const float *scales, const uint8_t *zeros, const float *offsets);
void free_matrix(PackedMatrix *m);

/* Quantize one row of float [k] into its place. */
void quantize_row(const PackedMatrix *m, const float *x, const QuantizedRows *to, int64_t row);

/* y[row][lane] = sum over features, for rows [first, first + count) and one tile; the rows of y follow each other. */
void multiply_tile(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count,
                   float *y);

#endif
