/* See block_matmul.h. */
#include "core/block_matmul.h"

#include <float.h>
#include <math.h>

#include "contract.h"
#include "isa/dot.h"

void quantize_row(const PackedMatrix *m, const float *x, const QuantizedRows *to, int64_t row) {
    const int64_t width = m->blocks * m->block_size;
    int8_t *values = to->values + row * to->planes * width;
    const float most = to->planes == 2 ? 127.0f * 257.0f : 127.0f;
    const float unit = m->has_codes ? ldexpf(1.0f, m->bits - 8) : 1.0f;
    for (int64_t block = 0; block < m->blocks; block++) {
        int64_t start = block * m->block_size;
        int64_t count = m->k - start < m->block_size ? m->k - start : m->block_size;
        Vec magnitude = vec_set(0.0f);
        for (int64_t i = 0; i < count; i += VEC)
            magnitude = vec_larger_magnitude(vec_load_lanes(x + start + i, vec_lanes(count - i)), magnitude);
        const float scale = vec_largest_magnitude(magnitude) / most;
        /* Below FLT_MIN the inverse overflows; where the scale is NaN, it makes the results NaN, whatever the
         * integers. */
        const Vec inverse = vec_set(scale >= FLT_MIN ? 1.0f / scale : 0.0f);
        IntVec sum = int_zero();
        for (int64_t i = 0; i < m->block_size; i += VEC) {
            const IntVec q = vec_to_int(vec_mul(vec_load_lanes(x + start + i, vec_lanes(count - i)), inverse));
            sum = int_add(sum, q);
            if (to->planes == 2) {
                int_store8(values + start + i, int_upper(q));
                int_store8(values + width + start + i, int_lower(q));
            } else {
                int_store8(values + start + i, q);
            }
        }
        to->scales[row * m->blocks + block] = scale;
        to->sums[row * m->blocks + block] = (float)int_sum(sum) * unit;
    }
}

#define AHEAD 2048 /* bytes that a decode step prefetches before it needs them */

/* How the weights and activations of a product are stored. */
typedef struct {
    int bits, codes, planes, one_step;
} Form;

INLINE void multiply_group(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, const int rows,
                           float *y, const Form form) {
    const uint8_t *from = m->data + tile * m->tile_bytes;
    const int low = LOW_BITS(form.bits), high = form.bits - low;
    const size_t step_bytes = (size_t)VEC * STEP * form.bits / 8;
    const uint8_t *parameters = from + m->blocks * data_bytes(m);
    const int64_t width = m->blocks * m->block_size;
    const int8_t *values = x->values + first * form.planes * width;
    const float *scales = x->scales + first * m->blocks, *sums = x->sums + first * m->blocks;
    Vec total[GROUP];
    for (int r = 0; r < rows; r++) total[r] = vec_set(0.0f);
    for (int64_t block = 0; block < m->blocks; block++) {
        IntVec sum[GROUP], lower[GROUP];
        for (int r = 0; r < rows; r++) sum[r] = lower[r] = int_zero();
        const int steps = form.one_step ? 1 : m->block_size / STEP;
        for (int s = 0; s < steps; s++, from += step_bytes) {
            Levels w;
            if (rows == 1) prefetch(from + AHEAD, step_bytes);
            load_levels(low, high, from, &w);
            for (int r = 0; r < rows; r++) {
                const int8_t *row = values + r * form.planes * width + block * m->block_size + s * STEP;
                sum[r] = dot(&w, row, sum[r]);
                if (form.planes == 2) lower[r] = dot(&w, row + width, lower[r]);
            }
        }
        const Vec scale = form.codes ? vec_load_codes(parameters) : vec_load_half(parameters);
        parameters += VEC * (form.codes ? 1 : 2);
        Vec zero = vec_set(form.codes ? (float)MIDDLE_CODE : (float)(1 << (form.bits - 1)));
        if (m->has_zeros) {
            zero = form.codes ? vec_load_codes(parameters) : vec_load_half(parameters);
            parameters += VEC * (form.codes ? 1 : 2);
        }
        for (int r = 0; r < rows; r++) {
            Vec value = int_to_vec(sum[r]);
            if (form.planes == 2) value = vec_fma(value, vec_set(256.0f), int_to_vec(lower[r]));
            value = vec_fnma(zero, vec_set(sums[r * m->blocks + block]), value);
            total[r] = vec_fma(value, vec_mul(scale, vec_set(scales[r * m->blocks + block])), total[r]);
        }
    }
    const Vec rescale = form.codes ? vec_load((const float *)parameters) : vec_set(m->rescale);
    for (int r = 0; r < rows; r++) vec_store(y + r * VEC, vec_mul(total[r], rescale));
}

INLINE void multiply_rows(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count,
                          float *y, const Form form) {
    const int most = GROUP / form.planes;
    for (; count >= most; count -= most, first += most, y += most * VEC)
        multiply_group(m, x, tile, first, most, y, form);
    for (; most > 4 && count >= 4; count -= 4, first += 4, y += 4 * VEC)
        multiply_group(m, x, tile, first, 4, y, form);
    for (; count > 0; count--, first++, y += VEC) multiply_group(m, x, tile, first, 1, y, form);
}

/* The compiler makes a body of its own for each form, and number of rows. */
#define MULTIPLY(bits, codes)                                                                                        \
    if (x->planes == 1 && m->block_size == STEP)                                                                     \
        multiply_rows(m, x, tile, first, count, y, (Form){bits, codes, 1, 1});                                       \
    else if (x->planes == 1)                                                                                         \
        multiply_rows(m, x, tile, first, count, y, (Form){bits, codes, 1, 0});                                       \
    else                                                                                                             \
        multiply_rows(m, x, tile, first, count, y, (Form){bits, codes, 2, 0})

void multiply_tile(const PackedMatrix *m, const QuantizedRows *x, int64_t tile, int64_t first, int64_t count,
                   float *y) {
    if (!BODIES) {
        multiply_rows(m, x, tile, first, count, y, (Form){m->bits, m->has_codes, x->planes, 0});
        return;
    }
    switch (m->has_codes ? m->bits : -m->bits) {
    case 2:
        MULTIPLY(2, 1);
        break;
    case 3:
        MULTIPLY(3, 1);
        break;
    case 4:
        MULTIPLY(4, 1);
        break;
    case 5:
        MULTIPLY(5, 1);
        break;
    case 6:
        MULTIPLY(6, 1);
        break;
    case 8:
        MULTIPLY(8, 1);
        break;
    case -4:
        MULTIPLY(4, 0);
        break;
    default:
        MULTIPLY(8, 0);
    }
}
