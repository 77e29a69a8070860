#include "blocks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES 64 /* rows that are worked on at once: a block of them stays in the first cache */
#define EXPORT __attribute__((visibility("default")))
#if !defined(CLONES) && defined(__x86_64__) && defined(__gnu_linux__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef CLONES
#define CLONES
#endif
#define EACH(i) for (int i = 0; i < LANES; i++)

typedef float Lane[LANES];

typedef struct {
    Lane scale, base, zero;
} Steps;

typedef struct {
    const Grid *grid;
    const Lane *x; /* [features] */
    const float *importance;
    int64_t features;
    Lane row_scale;
} Block;

static float to_half(float value) {
#ifdef __FLT16_MANT_DIG__
    return (float)(_Float16)value;
#else
    /* Adding a power of two rounds to the 10 bits that are left below it, to nearest even. */
    float size = fabsf(value);
    if (!(size < 65520.0f)) return isnan(value) ? value : copysignf(INFINITY, value);
    int exponent;
    frexpf(size, &exponent);
    float step = ldexpf(1.0f, (exponent < -13 ? -13 : exponent) + 12);
    volatile float sum = size + step;
    return copysignf(sum - step, value);
#endif
}

static float to_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

/* To the type in which scales and offsets are stored. */
static void round_stored(const Grid *grid, Lane value) {
    if (grid->store == STORE_HALF) EACH(i) value[i] = to_half(value[i]);
    if (grid->store == STORE_BFLOAT) EACH(i) value[i] = to_bfloat(value[i]);
    EACH(i) value[i] = fabsf(value[i]) < grid->tiny ? 0.0f : value[i];
}

static inline float clamped(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

static inline float divided(float value, float by) { return by == 0.0f ? 0.0f : value / by; }

/* The grid nearest to s.scale and s.base that scheme and type can hold. */
CLONES static void to_stored(const Block *b, Steps *s) {
    const Grid *grid = b->grid;
    if (grid->form == FORM_PACKED) {
        EACH(i) {
            float code = divided(s->scale[i], b->row_scale[i]);
            s->scale[i] = code > 0.0f ? clamped(rintf(code), 1.0f, grid->largest_code) * b->row_scale[i] : 0.0f;
        }
    } else {
        round_stored(grid, s->scale);
    }
    if (grid->form == FORM_QDQ) EACH(i) s->scale[i] = s->scale[i] < grid->tiny ? 1.0f : s->scale[i];
    if (grid->zero == ZERO_OFFSET) {
        EACH(i) s->zero[i] = s->base[i] + grid->half * s->scale[i];
        round_stored(grid, s->zero);
        EACH(i) s->base[i] = s->zero[i] - grid->half * s->scale[i];
    } else if (grid->zero == ZERO_POINT) {
        EACH(i) {
            float point = rintf(divided(-s->base[i], s->scale[i]) / grid->unit);
            s->zero[i] = clamped(point, 0.0f, grid->most_zero) * grid->unit;
            s->base[i] = -s->zero[i] * s->scale[i];
        }
    } else {
        EACH(i) s->base[i] = -grid->half * s->scale[i];
    }
}

static void inverses(const Lane scale, Lane inverse) {
    EACH(i) inverse[i] = scale[i] == 0.0f ? 0.0f : 1.0f / scale[i];
}

static inline float level_of(float x, float base, float inverse, float low, float top) {
    return clamped(rintf((x - base) * inverse), low, top);
}

CLONES static void errors_of(const Block *b, const Steps *s, Lane error) {
    const float low = b->grid->low, top = b->grid->top;
    Lane inverse;
    inverses(s->scale, inverse);
    memset(error, 0, sizeof(Lane));
    for (int64_t f = 0; f < b->features; f++) {
        const float weight = b->importance[f];
        EACH(i) {
            float level = level_of(b->x[f][i], s->base[i], inverse[i], low, top);
            float off = b->x[f][i] - (s->base[i] + level * s->scale[i]);
            error[i] += weight * (off * off);
        }
    }
}

/* The scale by which levels from ``zero`` on (NULL: from the middle) are nearest to the block; else it stays. */
CLONES static void slope_of(const Block *b, const Steps *levels, const float *zero, Lane scale) {
    const Grid *grid = b->grid;
    const int is_signed = grid->form == FORM_NBITS && grid->zero == ZERO_NONE;
    Lane inverse, squares = {0}, products = {0};
    inverses(levels->scale, inverse);
    for (int64_t f = 0; f < b->features; f++) {
        const float weight = b->importance[f];
        EACH(i) {
            float level = level_of(b->x[f][i], levels->base[i], inverse[i], grid->low, grid->top);
            float point = level - (zero ? zero[i] : grid->half);
            squares[i] += weight * (point * point);
            products[i] += weight * (point * b->x[f][i]);
        }
    }
    EACH(i) {
        float slope = products[i] / (squares[i] > 0.0f ? squares[i] : 1.0f);
        if (squares[i] > 0.0f && (slope > 0.0f || is_signed)) scale[i] = slope;
    }
}

/* Scale and base by weighted least squares for the levels that ``s`` gives, where both are free. */
CLONES static void line_of(const Block *b, Steps *s) {
    const Grid *grid = b->grid;
    Lane inverse, by_level = {0}, squares = {0}, products = {0}, sums = {0};
    float total = 0.0f;
    inverses(s->scale, inverse);
    for (int64_t f = 0; f < b->features; f++) {
        const float weight = b->importance[f];
        total += weight;
        EACH(i) {
            float x = b->x[f][i];
            float point = level_of(x, s->base[i], inverse[i], grid->low, grid->top) - grid->half;
            by_level[i] += weight * point;
            squares[i] += weight * (point * point);
            products[i] += weight * (point * x);
            sums[i] += weight * x;
        }
    }
    EACH(i) {
        float scatter = total * squares[i] - by_level[i] * by_level[i];
        float slope = (total * products[i] - by_level[i] * sums[i]) / (scatter > 0.0f ? scatter : 1.0f);
        int fits = scatter > 0.0f && slope > 0.0f;
        slope = fits ? slope : s->scale[i];
        float offset = (sums[i] - slope * by_level[i]) / (total > 0.0f ? total : 1.0f);
        s->base[i] = fits ? offset - grid->half * slope : s->base[i];
        s->scale[i] = slope;
    }
}

static void refit(const Block *b, Steps *s) {
    const Grid *grid = b->grid;
    const Steps before = *s;
    if (grid->zero == ZERO_NONE) {
        slope_of(b, &before, NULL, s->scale);
        to_stored(b, s);
        return;
    }
    line_of(b, s);
    to_stored(b, s);
    if (grid->zero == ZERO_OFFSET) return;
    /* The zero point was rounded: the scale that suits the rounded one. */
    Lane zero;
    memcpy(zero, s->zero, sizeof zero);
    slope_of(b, &before, zero, s->scale);
    EACH(i) s->base[i] = -zero[i] * s->scale[i];
    to_stored(b, s);
}

/* The grid over a part of each row's range. */
CLONES static void range_part(const Grid *grid, const Lane high, const Lane low, float part, float margin, Steps *s) {
    if (grid->zero != ZERO_NONE) {
        EACH(i) {
            s->scale[i] = (high[i] - low[i]) * part;
            s->base[i] = low[i] + (high[i] - low[i]) * margin;
        }
        return;
    }
    if (grid->form == FORM_NBITS) {
        EACH(i) s->scale[i] = (high[i] > -low[i] ? high[i] : low[i]) * part;
    } else {
        EACH(i) {
            float above = high[i] / (grid->half - 1.0f), below = low[i] / (grid->low - grid->half);
            s->scale[i] = (above > below ? above : below) * part;
        }
    }
    EACH(i) s->base[i] = -grid->half * s->scale[i];
}

static void fit_lanes(const Block *b, const float *part, const float *margin, Steps *best) {
    const Grid *grid = b->grid;
    Lane high, low, least, error;
    memcpy(high, b->x[0], sizeof high);
    memcpy(low, b->x[0], sizeof low);
    for (int64_t f = 1; f < b->features; f++) {
        EACH(i) high[i] = b->x[f][i] > high[i] ? b->x[f][i] : high[i];
        EACH(i) low[i] = b->x[f][i] < low[i] ? b->x[f][i] : low[i];
    }
    if (grid->zero == ZERO_POINT) {
        EACH(i) high[i] = high[i] < 0.0f ? 0.0f : high[i];
        EACH(i) low[i] = low[i] > 0.0f ? 0.0f : low[i];
    }
    memset(best, 0, sizeof *best);
    range_part(grid, high, low, part[0], margin[0], best);
    to_stored(b, best);
    errors_of(b, best, least);
    for (int index = 0; index < (grid->ratios > 1 ? grid->ratios : 0); index++) {
        Steps s = {0};
        range_part(grid, high, low, part[index], margin[index], &s);
        to_stored(b, &s);
        refit(b, &s);
        refit(b, &s);
        errors_of(b, &s, error);
        EACH(i) {
            int better = error[i] < least[i];
            least[i] = better ? error[i] : least[i];
            best->scale[i] = better ? s.scale[i] : best->scale[i];
            best->base[i] = better ? s.base[i] : best->base[i];
            best->zero[i] = better ? s.zero[i] : best->zero[i];
        }
    }
}

EXPORT int llmc_fit_block(const Grid *grid, const float *block, int64_t features, int64_t rows,
                          const float *importance, const float *part, const float *margin, const float *row_scale,
                          float *scale, float *base, float *zero) {
    Lane *x = calloc((size_t)features, sizeof(Lane));
    if (!x) return -1;
    for (int64_t first = 0; first < rows; first += LANES) {
        const size_t bytes = (size_t)(rows - first < LANES ? rows - first : LANES) * sizeof(float);
        Block b = {.grid = grid, .x = (const Lane *)x, .importance = importance, .features = features};
        for (int64_t f = 0; f < features; f++) memcpy(x[f], block + f * rows + first, bytes);
        if (row_scale) memcpy(b.row_scale, row_scale + first, bytes);
        Steps best;
        fit_lanes(&b, part, margin, &best);
        memcpy(scale + first, best.scale, bytes);
        memcpy(base + first, best.base, bytes);
        if (grid->zero != ZERO_NONE) memcpy(zero + first, best.zero, bytes);
    }
    free(x);
    return 0;
}

EXPORT CLONES int llmc_round_panel(const float *target, const float *weight, const float *share, const float *scale,
                                   const float *base, int64_t steps, int64_t features, int64_t rows, float low,
                                   float top, float *level, float *error) {
    Lane *errors = calloc((size_t)features, sizeof(Lane));
    if (!errors) return -1;
    for (int64_t first = 0; first < rows; first += LANES) {
        const size_t bytes = (size_t)(rows - first < LANES ? rows - first : LANES) * sizeof(float);
        for (int64_t f = 0; f < features; f++) {
            const int64_t place = f * rows + first, grid = (steps > 1 ? f : 0) * rows + first;
            Lane wanted = {0}, whole = {0}, size = {0}, bottom = {0}, inverse, levels;
            memcpy(wanted, target + place, bytes);
            memcpy(whole, weight + place, bytes);
            memcpy(size, scale + grid, bytes);
            memcpy(bottom, base + grid, bytes);
            for (int64_t j = 0; j < f; j++) {
                const float part = share[j * features + f];
                EACH(i) wanted[i] += errors[j][i] * part;
            }
            inverses(size, inverse);
            EACH(i) levels[i] = level_of(wanted[i], bottom[i], inverse[i], low, top);
            EACH(i) errors[f][i] = whole[i] - (bottom[i] + levels[i] * size[i]);
            memcpy(level + place, levels, bytes);
            memcpy(error + place, errors[f], bytes);
        }
    }
    free(errors);
    return 0;
}
