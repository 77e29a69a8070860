/* See block_matmul.h. */
#define _GNU_SOURCE
#include "core/block_matmul.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "isa/dot.h"

#define HUGE_PAGE ((size_t)2 << 20)

static size_t data_bytes(const PackedMatrix *m) { return (size_t)VEC * m->block_size * m->bits / 8; }

static size_t parameter_bytes(const PackedMatrix *m) { return VEC * 2 + (m->has_zeros ? VEC * 2 : 0); }

static unsigned level(const PackedMatrix *m, const uint8_t *b, int64_t row, int64_t block, int feature) {
    const uint8_t *place = b + ((size_t)row * m->blocks + block) * m->block_size * m->bits / 8;
    if (m->bits == 8) return place[feature];
    return (place[feature / 2] >> (feature % 2 * 4)) & 15;
}

/* Whether all levels of a block stand for its offset: a zero point that far away is no float16. Such a block is
 * stored as levels 0, zero point -1 and the offset as its scale. */
static int is_constant(const PackedMatrix *m, const float *scales, const float *offsets, int64_t row, int64_t block) {
    return offsets && fabsf(offsets[block * m->n + row]) > 65000.0f * fabsf(scales[row * m->blocks + block]);
}

static float scale_of(const PackedMatrix *m, const float *scales, const float *offsets, int64_t row, int64_t block) {
    return is_constant(m, scales, offsets, row, block) ? offsets[block * m->n + row]
                                                       : scales[row * m->blocks + block];
}

static void pack_block(const PackedMatrix *m, const uint8_t *b, const float *scales, const float *offsets,
                       int64_t tile, int64_t block, uint8_t *to) {
    for (int step = 0; step < m->block_size; step += STEP) {
        uint8_t levels[VEC][STEP];
        for (int r = 0; r < VEC; r++) {
            const int64_t row = tile * VEC + r;
            const int stored = row < m->n && !is_constant(m, scales, offsets, row, block);
            for (int f = 0; f < STEP; f++) levels[r][f] = stored ? level(m, b, row, block, step + f) : 0;
        }
        pack_levels(m->bits, levels, to);
        to += (size_t)VEC * STEP * m->bits / 8;
    }
}

/* Where 0 lies between the levels of a block: (level - zero) * scale = (level - 2^(bits-1)) * scale + offset. */
static float zero_point(const PackedMatrix *m, const float *scales, const uint8_t *zeros, const float *offsets,
                        int64_t row, int64_t block) {
    const float middle = (float)(1 << (m->bits - 1));
    if (is_constant(m, scales, offsets, row, block)) return -1.0f;
    if (offsets) {
        float scale = scales[row * m->blocks + block];
        return scale == 0.0f ? middle : middle - offsets[block * m->n + row] / scale;
    }
    const uint8_t *packed = zeros + row * (((size_t)m->blocks * m->bits + 7) / 8);
    return m->bits == 8 ? packed[block] : (float)((packed[block / 2] >> (block % 2 * 4)) & 15);
}

static void store_half(uint8_t *to, float value) {
    const uint16_t half = half_of(value);
    memcpy(to, &half, 2);
}

static void pack_parameters(const PackedMatrix *m, const float *scales, const uint8_t *zeros, const float *offsets,
                            int64_t tile, int64_t block, uint8_t *to) {
    for (int r = 0; r < VEC; r++) {
        int64_t row = tile * VEC + r;
        if (row >= m->n) break; /* the memory is zero */
        store_half(to + 2 * r, scale_of(m, scales, offsets, row, block) / m->rescale);
        if (m->has_zeros) store_half(to + 2 * VEC + 2 * r, zero_point(m, scales, zeros, offsets, row, block));
    }
}

int pack_matrix(PackedMatrix *m, const uint8_t *b, const float *scales, const uint8_t *zeros, const float *offsets) {
    m->has_zeros = zeros != NULL || offsets != NULL;
    float largest = 0.0f;
    for (int64_t row = 0; row < m->n; row++)
        for (int64_t block = 0; block < m->blocks; block++)
            largest = fmaxf(largest, fabsf(scale_of(m, scales, offsets, row, block)));
    int exponent = 0;
    if (largest > 0.0f) frexpf(largest, &exponent);
    if (exponent < FLT_MIN_EXP) exponent = FLT_MIN_EXP;
    m->rescale = ldexpf(1.0f, exponent - 12); /* the largest scale becomes 2^11 to 2^12 */
    int64_t tiles = (m->n + VEC - 1) / VEC;
    m->tile_bytes = ((size_t)m->blocks * (data_bytes(m) + parameter_bytes(m)) + 63) / 64 * 64;
    size_t size = ((size_t)tiles * m->tile_bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if ((size_t)tiles * m->tile_bytes < HUGE_PAGE / 2) size = ((size_t)tiles * m->tile_bytes + 4095) / 4096 * 4096;
    m->data = aligned_alloc(size >= HUGE_PAGE ? HUGE_PAGE : 4096, size);
    if (m->data == NULL) return -1;
    /* Fewer page-table walks while streaming; where the kernel says no, nothing is lost. */
    if (size >= HUGE_PAGE) (void)madvise(m->data, size, MADV_HUGEPAGE);
    memset(m->data, 0, size);
    for (int64_t tile = 0; tile < tiles; tile++) {
        uint8_t *to = m->data + tile * m->tile_bytes, *parameters = to + m->blocks * data_bytes(m);
        for (int64_t block = 0; block < m->blocks; block++) {
            pack_block(m, b, scales, offsets, tile, block, to + block * data_bytes(m));
            pack_parameters(m, scales, zeros, offsets, tile, block, parameters + block * parameter_bytes(m));
        }
    }
    return 0;
}

void free_matrix(PackedMatrix *m) {
    free(m->data);
    m->data = NULL;
}

void quantize_row(const PackedMatrix *m, const float *x, const QuantizedRows *to, int64_t row) {
    int8_t *values = to->values + row * m->blocks * m->block_size;
    for (int64_t block = 0; block < m->blocks; block++) {
        int64_t start = block * m->block_size;
        int64_t count = m->k - start < m->block_size ? m->k - start : m->block_size;
        Vec magnitude = vec_set(0.0f);
        for (int64_t i = 0; i < count; i += VEC)
            magnitude = vec_larger_magnitude(vec_load_lanes(x + start + i, vec_lanes(count - i)), magnitude);
        const float scale = vec_largest_magnitude(magnitude) / 127.0f;
        /* Below FLT_MIN the inverse overflows; where the scale is NaN, it makes the results NaN, whatever the
         * integers. */
        const Vec inverse = vec_set(scale >= FLT_MIN ? 1.0f / scale : 0.0f);
        IntVec sum = int_zero();
        for (int64_t i = 0; i < m->block_size; i += VEC) {
            const IntVec q = vec_to_int(vec_mul(vec_load_lanes(x + start + i, vec_lanes(count - i)), inverse));
            sum = int_add(sum, q);
            int_store8(values + start + i, q);
        }
        to->scales[row * m->blocks + block] = scale;
        to->sums[row * m->blocks + block] = (float)int_sum(sum);
    }
}

#define AHEAD 2048 /* bytes that a decode step prefetches before it needs them */

INLINE void multiply_group(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, const int rows,
                           float *y, const int bits, const int one_step) {
    const uint8_t *from = m->data + tile * m->tile_bytes;
    const size_t step_bytes = (size_t)VEC * STEP * bits / 8;
    const uint8_t *parameters = from + m->blocks * data_bytes(m);
    const int64_t width = m->blocks * m->block_size;
    const int8_t *values = x->values + first * width;
    const float *scales = x->scales + first * m->blocks, *sums = x->sums + first * m->blocks;
    Vec total[GROUP];
    for (int r = 0; r < rows; r++) total[r] = vec_set(0.0f);
    for (int64_t block = 0; block < m->blocks; block++) {
        IntVec sum[GROUP];
        for (int r = 0; r < rows; r++) sum[r] = int_zero();
        const int steps = one_step ? 1 : m->block_size / STEP;
        for (int s = 0; s < steps; s++, from += step_bytes) {
            Levels w;
            if (rows == 1) prefetch(from + AHEAD, step_bytes);
            load_levels(bits, from, &w);
            for (int r = 0; r < rows; r++)
                sum[r] = dot(&w, values + r * width + block * m->block_size + s * STEP, sum[r]);
        }
        const Vec scale = vec_load_half(parameters);
        parameters += VEC * 2;
        Vec zero = vec_set((float)(1 << (bits - 1)));
        if (m->has_zeros) {
            zero = vec_load_half(parameters);
            parameters += VEC * 2;
        }
        for (int r = 0; r < rows; r++) {
            const Vec value = vec_fnma(zero, vec_set(sums[r * m->blocks + block]), int_to_vec(sum[r]));
            total[r] = vec_fma(value, vec_mul(scale, vec_set(scales[r * m->blocks + block])), total[r]);
        }
    }
    const Vec rescale = vec_set(m->rescale);
    for (int r = 0; r < rows; r++) vec_store(y + r * VEC, vec_mul(total[r], rescale));
}

/* The compiler makes a body of its own for each number of rows, bits and kind of block. */
INLINE void multiply_rows(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, const int rows,
                          float *y) {
    if (m->bits == 4 && m->block_size == STEP)
        multiply_group(m, x, tile, first, rows, y, 4, 1);
    else if (m->bits == 4)
        multiply_group(m, x, tile, first, rows, y, 4, 0);
    else if (m->block_size == STEP)
        multiply_group(m, x, tile, first, rows, y, 8, 1);
    else
        multiply_group(m, x, tile, first, rows, y, 8, 0);
}

void multiply_tile(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count,
                   float *y) {
    for (; count >= GROUP; count -= GROUP, first += GROUP, y += GROUP * VEC)
        multiply_rows(m, x, tile, first, GROUP, y);
    for (; count >= 4; count -= 4, first += 4, y += 4 * VEC) multiply_rows(m, x, tile, first, 4, y);
    for (; count > 0; count--, first++, y += VEC) multiply_rows(m, x, tile, first, 1, y);
}
