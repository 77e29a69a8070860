/* Grids of blocks, and rounding to them: what solvers do to every weight, for many rows side by side.
 *
 * Arrays are [features, rows], a feature's rows one after the other. block_grid.py and gptq.py say what is computed
 * and compute the same without a compiler; operations are theirs, in their order, but for that of sums.
 */
#ifndef LLMC_BLOCKS_H
#define LLMC_BLOCKS_H

#include <stdint.h>

enum { ZERO_NONE, ZERO_OFFSET, ZERO_POINT };
enum { FORM_NBITS, FORM_PACKED, FORM_QDQ };
enum { STORE_FLOAT, STORE_HALF, STORE_BFLOAT };

typedef struct {
    int32_t zero;         /* what stands beside a scale */
    int32_t form;         /* how it is stored */
    int32_t store;        /* in what type scales and offsets are */
    int32_t ratios;       /* to how many a block's range is clipped; 1: nothing is searched */
    float low, top, half; /* the lowest level, the highest, the one that stands for zero or the offset */
    float unit;           /* between two zero points, in levels */
    float most_zero;      /* the largest zero point, in units */
    float largest_code;   /* of a packed scale */
    float tiny;           /* scales below are 0 */
} Grid;

/* The grid of least weighted squared error for each row; 0, or -1: no memory.
 *
 * block [features, rows]; importance [features]; part, margin [ratios]: what of a block's range is a step, and what lies
 * before the lowest level, the first of the whole range; row_scale [rows] or NULL; scale, base and zero [rows] are
 * written, zero only where the scheme has one.
 */
int llmc_fit_block(const Grid *grid, const float *block, int64_t features, int64_t rows, const float *importance,
                   const float *part, const float *margin, const float *row_scale, float *scale, float *base,
                   float *zero);

/* Features one after the other, each of which makes up for the errors of those before it; 0, or -1: no memory.
 *
 * target [features, rows], what they are rounded from as far as earlier panels are known; weight [features, rows],
 * what they are; share [features, features], what an error of a row adds to the target of a column; scale, base
 * [steps, rows], where steps is 1 or features. level and error [features, rows] are written.
 */
int llmc_round_panel(const float *target, const float *weight, const float *share, const float *scale,
                     const float *base, int64_t steps, int64_t features, int64_t rows, float low, float top,
                     float *level, float *error);

#endif
