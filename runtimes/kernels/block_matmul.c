/* See block_matmul.h. */
#define _GNU_SOURCE
#include "block_matmul.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "simd.h"

#define HUGE_PAGE ((size_t)2 << 20)

static size_t data_bytes(const PackedMatrix *m) { return (size_t)TILE * m->block_size * m->bits / 8; }

static size_t parameter_bytes(const PackedMatrix *m) { return TILE * 2 + (m->has_zeros ? TILE * 2 : 0); }

static unsigned level(const PackedMatrix *m, const uint8_t *b, int64_t row, int64_t block, int feature) {
    const uint8_t *place = b + ((size_t)row * m->blocks + block) * m->block_size * m->bits / 8;
    if (m->bits == 8) return place[feature];
    return (place[feature / 2] >> (feature % 2 * 4)) & 15;
}

/* Whether all levels of a block stand for its offset: a zero point that far away is no float16. Such a block is stored as
 * levels 0, zero point -1 and the offset as its scale. */
static int is_constant(const PackedMatrix *m, const float *scales, const float *offsets, int64_t row, int64_t block) {
    return offsets && fabsf(offsets[block * m->n + row]) > 65000.0f * fabsf(scales[row * m->blocks + block]);
}

static float scale_of(const PackedMatrix *m, const float *scales, const float *offsets, int64_t row, int64_t block) {
    return is_constant(m, scales, offsets, row, block) ? offsets[block * m->n + row] : scales[row * m->blocks + block];
}

static void pack_block(const PackedMatrix *m, const uint8_t *b, const float *scales, const float *offsets, int64_t tile,
                       int64_t block, uint8_t *to) {
    for (int step = 0; step < m->block_size; step += LANE) {
        for (int j = 0; j < 8; j++) {
            for (int r = 0; r < TILE; r++) {
                int64_t row = tile * TILE + r;
                const int stored = row < m->n && !is_constant(m, scales, offsets, row, block);
                for (int i = 0; i < 4; i++) {
                    unsigned value = stored ? level(m, b, row, block, step + 4 * j + i) : 0;
                    if (m->bits == 8)
                        to[j * 64 + r * 4 + i] = (uint8_t)value;
                    else if (j < 4)
                        to[j * 64 + r * 4 + i] = (uint8_t)value;
                    else
                        to[(j - 4) * 64 + r * 4 + i] |= (uint8_t)(value << 4);
                }
            }
        }
        to += (size_t)TILE * LANE * m->bits / 8;
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
    uint16_t half = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
    memcpy(to, &half, 2);
}

static void pack_parameters(const PackedMatrix *m, const float *scales, const uint8_t *zeros, const float *offsets,
                            int64_t tile, int64_t block, uint8_t *to) {
    for (int r = 0; r < TILE; r++) {
        int64_t row = tile * TILE + r;
        if (row >= m->n) break; /* the memory is zero */
        store_half(to + 2 * r, scale_of(m, scales, offsets, row, block) / m->rescale);
        if (m->has_zeros) store_half(to + 2 * TILE + 2 * r, zero_point(m, scales, zeros, offsets, row, block));
    }
}

int pack_matrix(PackedMatrix *m, const uint8_t *b, const float *scales, const uint8_t *zeros,
                const float *offsets) {
    m->has_zeros = zeros != NULL || offsets != NULL;
    float largest = 0.0f;
    for (int64_t row = 0; row < m->n; row++)
        for (int64_t block = 0; block < m->blocks; block++)
            largest = fmaxf(largest, fabsf(scale_of(m, scales, offsets, row, block)));
    int exponent = 0;
    if (largest > 0.0f) frexpf(largest, &exponent);
    if (exponent < FLT_MIN_EXP) exponent = FLT_MIN_EXP;
    m->rescale = ldexpf(1.0f, exponent - 12); /* the largest scale becomes 2^11 to 2^12 */
    int64_t tiles = (m->n + TILE - 1) / TILE;
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
        __m512i bits = _mm512_setzero_si512(); /* of the largest magnitude: as integers, NaN is above infinity */
        for (int64_t i = 0; i < count; i += 16) {
            const __mmask16 mask = first_lanes(count - i);
            const __m512 magnitude = _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, x + start + i));
            bits = _mm512_max_epu32(bits, _mm512_castps_si512(magnitude));
        }
        const uint32_t largest = _mm512_reduce_max_epu32(bits);
        float scale;
        memcpy(&scale, &largest, sizeof scale);
        scale /= 127.0f;
        /* Below FLT_MIN the inverse overflows; where the scale is NaN, it makes the results NaN, whatever the integers. */
        __m512 inverse = _mm512_set1_ps(scale >= FLT_MIN ? 1.0f / scale : 0.0f);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t i = 0; i < m->block_size; i += 16) {
            const __mmask16 mask = first_lanes(count - i);
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + start + i), inverse));
            sum = _mm512_add_epi32(sum, q);
            _mm_storeu_si128((__m128i *)(values + start + i), _mm512_cvtsepi32_epi8(q));
        }
        to->scales[row * m->blocks + block] = scale;
        to->sums[row * m->blocks + block] = (float)_mm512_reduce_add_epi32(sum);
    }
}

#define AHEAD 2048 /* bytes that a decode step prefetches before it needs them */

/* Rows that share one unpacking of the weights: 8 accumulators, 8 unpacked registers. */
#define GROUP 8

static inline __attribute__((always_inline)) void load_step(int bits, const uint8_t *from, __m512i w[8]) {
    if (bits == 8) {
        for (int j = 0; j < 8; j++) w[j] = _mm512_load_si512(from + 64 * j);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; j++) {
        __m512i packed = _mm512_load_si512(from + 64 * j);
        w[j] = _mm512_and_si512(packed, low);
        w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
    }
}

static inline __attribute__((always_inline)) __m512i dot(const __m512i w[8], const int8_t *x, __m512i sum) {
    __m512i other = _mm512_setzero_si512();
    for (int j = 0; j < 8; j += 2) {
        int32_t a, b;
        memcpy(&a, x + 4 * j, 4);
        memcpy(&b, x + 4 * j + 4, 4);
        sum = _mm512_dpbusd_epi32(sum, w[j], _mm512_set1_epi32(a));
        other = _mm512_dpbusd_epi32(other, w[j + 1], _mm512_set1_epi32(b));
    }
    return _mm512_add_epi32(sum, other);
}

static inline __attribute__((always_inline)) void group(const PackedMatrix *m, const QuantizedRows *x, int64_t tile,
                                                        int64_t first, const int rows, float *y, int64_t stride,
                                                        const int bits, const int one_step) {
    const uint8_t *from = m->data + tile * m->tile_bytes;
    const size_t step_bytes = (size_t)TILE * LANE * bits / 8;
    const uint8_t *parameters = from + m->blocks * data_bytes(m);
    const int64_t width = m->blocks * m->block_size;
    const int8_t *values = x->values + first * width;
    const float *scales = x->scales + first * m->blocks, *sums = x->sums + first * m->blocks;
    __m512 total[GROUP];
    for (int r = 0; r < rows; r++) total[r] = _mm512_setzero_ps();
    for (int64_t block = 0; block < m->blocks; block++) {
        __m512i sum[GROUP];
        for (int r = 0; r < rows; r++) sum[r] = _mm512_setzero_si512();
        const int steps = one_step ? 1 : m->block_size / LANE;
        for (int s = 0; s < steps; s++, from += step_bytes) {
            __m512i w[8];
            if (rows == 1)
                for (size_t line = 0; line < step_bytes; line += 64) _mm_prefetch((const char *)from + AHEAD + line, _MM_HINT_T0);
            load_step(bits, from, w);
            for (int r = 0; r < rows; r++) sum[r] = dot(w, values + r * width + block * m->block_size + s * LANE, sum[r]);
        }
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)parameters));
        parameters += TILE * 2;
        __m512 zero = _mm512_set1_ps((float)(1 << (bits - 1)));
        if (m->has_zeros) {
            zero = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)parameters));
            parameters += TILE * 2;
        }
        for (int r = 0; r < rows; r++) {
            __m512 value = _mm512_cvtepi32_ps(sum[r]);
            value = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[r * m->blocks + block]), value);
            total[r] = _mm512_fmadd_ps(value, _mm512_mul_ps(scale, _mm512_set1_ps(scales[r * m->blocks + block])), total[r]);
        }
    }
    const __m512 rescale = _mm512_set1_ps(m->rescale);
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(y + r * stride, _mm512_mul_ps(total[r], rescale));
}

#define DISPATCH(rows)                                                                       \
    do {                                                                                     \
        if (m->bits == 4 && m->block_size == LANE)                                           \
            group(m, x, tile, first, rows, y, stride, 4, 1);                                 \
        else if (m->bits == 4)                                                               \
            group(m, x, tile, first, rows, y, stride, 4, 0);                                 \
        else if (m->block_size == LANE)                                                      \
            group(m, x, tile, first, rows, y, stride, 8, 1);                                 \
        else                                                                                 \
            group(m, x, tile, first, rows, y, stride, 8, 0);                                 \
    } while (0)

void multiply_tile(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count, float *y,
                   int64_t stride) {
    for (; count >= GROUP; count -= GROUP, first += GROUP, y += GROUP * stride) DISPATCH(8);
    for (; count >= 4; count -= 4, first += 4, y += 4 * stride) DISPATCH(4);
    for (; count > 0; count--, first++, y += stride) DISPATCH(1);
}
