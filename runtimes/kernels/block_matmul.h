/* Products of float activations with block-quantized weights, for processors with AVX-512 VNNI.
 *
 * Weights are packed in tiles of 16 output features. Within a tile, 32 input features at a time:
 *
 *     4 bits: 4 registers; byte i of lane r of register j holds feature 4j+i (low half) and 4(j+4)+i (high half)
 *     8 bits: 8 registers; byte i of lane r of register j holds feature 4j+i
 *
 * so that one VPDPBUSD multiplies 16 rows with 4 features and leaves one sum per row. Scales are float16, 16 side by
 * side, times 2^-exponent of the whole matrix so that none underflows; zero points are float16, 16 side by side: those
 * of blocks with an offset are no integers.
 */
#ifndef LLMC_BLOCK_MATMUL_H
#define LLMC_BLOCK_MATMUL_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define TILE 16
#define LANE 32 /* input features of one step */

typedef struct {
    int64_t k, n;      /* input and output features */
    int64_t blocks;    /* blocks of a row */
    int block_size;    /* a multiple of LANE */
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

int pack_matrix(PackedMatrix *m, const uint8_t *b, const float *scales, const uint8_t *zeros,
                const float *offsets);
void free_matrix(PackedMatrix *m);

/* Quantize one row of float [k] into its place. */
void quantize_row(const PackedMatrix *m, const float *x, const QuantizedRows *to, int64_t row);

/* y[row][0..15] = sum over features, for rows [first, first + count) and one tile; y has the given stride in floats. */
void multiply_tile(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count, float *y,
                   int64_t stride);

#endif
