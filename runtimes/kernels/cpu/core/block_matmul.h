/* Products of float activations with block-quantized weights, packed as core/packed_matrix.h draws.
 *
 * Floor of a decode step: the packed bytes from memory, bits / 8 + 2 / block_size (with zero points 4 / block_size) a
 * weight, of codes half of the second part; of a prompt: k n multiplications a token, 64 an instruction of AVX-512
 * VNNI. Reached with that, by one core of an AMD EPYC (Zen 5) on 576 x 3072 of 4 bits with offsets, in its cache:
 * 108 GB/s for one row, 366e9 multiplications a second for 64.
 */
#ifndef LLMC_BLOCK_MATMUL_H
#define LLMC_BLOCK_MATMUL_H

#include "core/packed_matrix.h"

/* Activations as integers with one scale and one sum per block: int8, or 16 bits in two planes of int8, the upper one
 * first: integer = 256 upper + lower, at most 127 * 257. */
typedef struct {
    int planes;     /* 1 or 2 */
    int8_t *values; /* [rows, planes, blocks * block_size] */
    float *scales;  /* [rows, blocks] */
    float *sums;    /* [rows, blocks], of the integers; for codes in units of their zero points, 2^(bits-8) */
} QuantizedRows;

/* Quantize one row of float [k] into its place. */
void quantize_row(const PackedMatrix *m, const float *x, const QuantizedRows *to, int64_t row);

/* y[row][lane] = sum over features, for rows [first, first + count) and one tile; the rows of y follow each other. A
 * row's result is the same whichever rows are multiplied with it. */
void multiply_tile(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count,
                   float *y);

#endif
