/* See packed_matrix.h. */
#define _GNU_SOURCE
#include "core/packed_matrix.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "contract.h"
#include "isa/dot.h"

#define HUGE_PAGE ((size_t)2 << 20)

_Static_assert(STEP == RUN, "a step is read at once");

size_t data_bytes(const PackedMatrix *m) { return (size_t)VEC * m->block_size * m->bits / 8; }

size_t parameter_bytes(const PackedMatrix *m) {
    const size_t each = m->has_codes ? 1 : 2;
    return VEC * each + (m->has_zeros ? VEC * each : 0);
}

/* Whether all levels of a block stand for its offset: a zero point that far away is no float16. Such a block is
 * stored as levels 0, zero point -1 and the offset as its scale. */
static int is_constant(const StoredWeight *w, int64_t row, int64_t block) {
    return w->offsets && fabsf(w->offsets[block * w->n + row]) > 65000.0f * fabsf(w->scales[row * w->blocks + block]);
}

static float scale_of(const StoredWeight *w, int64_t row, int64_t block) {
    return is_constant(w, row, block) ? w->offsets[block * w->n + row] : w->scales[row * w->blocks + block];
}

static void pack_block(const StoredWeight *w, int64_t tile, int64_t block, uint8_t *to) {
    const int low = LOW_BITS(w->bits);
    for (int step = 0; step < w->block_size; step += STEP) {
        uint8_t levels[VEC][STEP] = {0};
        for (int r = 0; r < VEC; r++) {
            const int64_t row = tile * VEC + r;
            const int stored = row < w->n && !is_constant(w, row, block);
            if (stored) read_levels(w, row, block * w->block_size + step, levels[r]);
        }
        pack_levels(low, w->bits - low, levels, to);
        to += (size_t)VEC * STEP * w->bits / 8;
    }
}

/* Where 0 lies between the levels of a block: (level - zero) * scale = (level - 2^(bits-1)) * scale + offset. */
static float zero_point(const StoredWeight *w, int64_t row, int64_t block) {
    const float middle = (float)(1 << (w->bits - 1));
    if (is_constant(w, row, block)) return -1.0f;
    if (w->offsets) {
        float scale = w->scales[row * w->blocks + block];
        return scale == 0.0f ? middle : middle - w->offsets[block * w->n + row] / scale;
    }
    const uint8_t *packed = w->zeros + row * (((size_t)w->blocks * w->bits + 7) / 8);
    return w->bits == 8 ? packed[block] : (float)((packed[block / 2] >> (block % 2 * 4)) & 15);
}

static void store_half(uint8_t *to, float value) {
    const uint16_t half = half_of(value);
    memcpy(to, &half, 2);
}

/* Scales and zero points of a block of a tile. Behind the last row the memory is zero. */
static void pack_parameters(const PackedMatrix *m, const StoredWeight *w, int64_t tile, int64_t block, uint8_t *to) {
    for (int r = 0; r < VEC; r++) {
        int64_t row = tile * VEC + r;
        if (row >= m->n) break;
        if (m->has_codes) {
            to[r] = w->codes[row * m->blocks + block];
            if (m->has_zeros) to[VEC + r] = w->zeros[row * m->blocks + block];
        } else {
            store_half(to + 2 * r, scale_of(w, row, block) / m->rescale);
            if (m->has_zeros) store_half(to + 2 * VEC + 2 * r, zero_point(w, row, block));
        }
    }
}

/* 2^exponent such that the largest scale, divided by it, is 2^11 to 2^12. */
static float rescale_of(const StoredWeight *w) {
    float largest = 0.0f;
    for (int64_t row = 0; row < w->n; row++)
        for (int64_t block = 0; block < w->blocks; block++) largest = fmaxf(largest, fabsf(scale_of(w, row, block)));
    int exponent = 0;
    if (largest > 0.0f) frexpf(largest, &exponent);
    if (exponent < FLT_MIN_EXP) exponent = FLT_MIN_EXP;
    return ldexpf(1.0f, exponent - 12);
}

static void pack_tile(const PackedMatrix *m, const StoredWeight *w, int64_t tile) {
    uint8_t *to = m->data + tile * m->tile_bytes, *parameters = to + m->blocks * data_bytes(m);
    for (int64_t block = 0; block < m->blocks; block++) {
        pack_block(w, tile, block, to + block * data_bytes(m));
        pack_parameters(m, w, tile, block, parameters + block * parameter_bytes(m));
    }
    const int64_t rows = m->n - tile * VEC < VEC ? m->n - tile * VEC : VEC;
    if (m->has_codes)
        memcpy(parameters + m->blocks * parameter_bytes(m), w->row_scales + tile * VEC, rows * sizeof(float));
}

int pack_matrix(PackedMatrix *m, const StoredWeight *w) {
    m->k = w->k, m->n = w->n, m->blocks = w->blocks, m->block_size = w->block_size, m->bits = w->bits;
    m->has_codes = w->codes != NULL;
    m->has_zeros = w->zeros != NULL || w->offsets != NULL;
    m->rescale = m->has_codes ? 1.0f : rescale_of(w);
    int64_t tiles = (m->n + VEC - 1) / VEC;
    const size_t row_scales = m->has_codes ? VEC * sizeof(float) : 0;
    m->tile_bytes = ((size_t)m->blocks * (data_bytes(m) + parameter_bytes(m)) + row_scales + 63) / 64 * 64;
    size_t size = ((size_t)tiles * m->tile_bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if ((size_t)tiles * m->tile_bytes < HUGE_PAGE / 2) size = ((size_t)tiles * m->tile_bytes + 4095) / 4096 * 4096;
    m->data = aligned_alloc(size >= HUGE_PAGE ? HUGE_PAGE : 4096, size);
    if (m->data == NULL) return -1;
    /* Fewer page-table walks while streaming; where the kernel says no, nothing is lost. */
    if (size >= HUGE_PAGE) (void)madvise(m->data, size, MADV_HUGEPAGE);
    memset(m->data, 0, size);
    for (int64_t tile = 0; tile < tiles; tile++) pack_tile(m, w, tile);
    return 0;
}

void free_matrix(PackedMatrix *m) {
    free(m->data);
    m->data = NULL;
}
