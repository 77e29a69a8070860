/* A block-quantized weight as a graph stores it, in one of two formats:
 *
 *     with scales    w = scale (level - zero), or scale (level - 2^(bits-1)) + offset; scales are float, levels and
 *                    zero points those of com.microsoft::MatMulNBits
 *     with codes     w = row scale * code (level - zero); codes and zero points are uint8, zero points in units of
 *                    2^(bits-8)
 *
 * Levels lie in two planes of [n, blocks, block_size]: the low plane with 2, 4 or 8 bits a level, the high plane with
 * what is above them, if anything. Lower features lie in lower bits.
 */
#ifndef LLMC_STORED_WEIGHT_H
#define LLMC_STORED_WEIGHT_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t k, n;              /* input and output features */
    int64_t blocks;            /* of a row */
    int block_size, bits;      /* a block's features, a multiple of BLOCK_MULTIPLE; a level's bits */
    const uint8_t *low, *high; /* planes; high is NULL where all bits are in the low one */
    const float *scales;       /* [n, blocks], or NULL: codes */
    const uint8_t *codes;      /* [n, blocks], or NULL: scales */
    const float *row_scales;   /* [n], beside codes */
    const uint8_t *zeros;      /* [n, blocks], of scales packed as levels are; NULL: 2^(bits-1) */
    const float *offsets;      /* [blocks, n], beside scales instead of zero points, or NULL */
} StoredWeight;

#define RUN 32          /* levels that are read at once; it divides BLOCK_MULTIPLE */
#define MIDDLE_CODE 128 /* of a zero point in the middle of the levels, whatever their bits */

/* Levels of features [feature, feature + RUN) of one row; they are of one block, and exist. */
void read_levels(const StoredWeight *w, int64_t row, int64_t feature, uint8_t levels[RUN]);

/* Values of a row of codes: to[k]. Each is rounded once: a product of code and level less zero point is exact. */
void read_row(const StoredWeight *w, int64_t row, float *to);

#endif
