/* Vectors in plain C, for any compiler and processor: what vec.h means. The other instruction sets are tested against
 * it. */
#include <math.h>

#define VEC 8
#define EACH for (int i = 0; i < VEC; i++)
#define MAP(type, value)                                                                                             \
    type y;                                                                                                          \
    EACH y.lane[i] = (value);                                                                                        \
    return y

typedef struct {
    float lane[VEC];
} Vec;
typedef struct {
    int32_t lane[VEC];
} IntVec;
typedef int Lanes; /* how many */

INLINE Lanes vec_lanes(int64_t count) { return count >= VEC ? VEC : count > 0 ? (Lanes)count : 0; }

INLINE Vec vec_load(const float *from) { MAP(Vec, from[i]); }
INLINE Vec vec_set(float x) { MAP(Vec, x); }
INLINE Vec vec_load_lanes(const float *from, Lanes lanes) { MAP(Vec, i < lanes ? from[i] : 0.0f); }
INLINE Vec vec_select(Lanes lanes, Vec a, Vec b) { MAP(Vec, i < lanes ? a.lane[i] : b.lane[i]); }
INLINE void vec_store(float *to, Vec x) { EACH to[i] = x.lane[i]; }
INLINE void vec_store_lanes(float *to, Vec x, Lanes lanes) {
    for (int i = 0; i < lanes; i++) to[i] = x.lane[i];
}

INLINE Vec vec_add(Vec a, Vec b) { MAP(Vec, a.lane[i] + b.lane[i]); }
INLINE Vec vec_sub(Vec a, Vec b) { MAP(Vec, a.lane[i] - b.lane[i]); }
INLINE Vec vec_mul(Vec a, Vec b) { MAP(Vec, a.lane[i] * b.lane[i]); }
INLINE Vec vec_div(Vec a, Vec b) { MAP(Vec, a.lane[i] / b.lane[i]); }
INLINE Vec vec_fma(Vec a, Vec b, Vec c) { MAP(Vec, a.lane[i] * b.lane[i] + c.lane[i]); }
INLINE Vec vec_fms(Vec a, Vec b, Vec c) { MAP(Vec, a.lane[i] * b.lane[i] - c.lane[i]); }
INLINE Vec vec_fnma(Vec a, Vec b, Vec c) { MAP(Vec, c.lane[i] - a.lane[i] * b.lane[i]); }
INLINE Vec vec_min(Vec a, Vec b) { MAP(Vec, a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
INLINE Vec vec_max(Vec a, Vec b) { MAP(Vec, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Above 2^23 a float has no fraction left, so that a sum is rounded to an integer; its last bits are that integer's.
 * */
#define ROUNDING 12582912.0f

INLINE Vec vec_round(Vec x) { MAP(Vec, (x.lane[i] + ROUNDING) - ROUNDING); }
INLINE Vec vec_scale2(Vec x, Vec n) {
    MAP(Vec, x.lane[i] * float_of((bits_of(n.lane[i] + ROUNDING) - bits_of(ROUNDING) + 127) << 23));
}

INLINE float vec_sum(Vec x) {
    float sum = 0.0f;
    EACH sum += x.lane[i];
    return sum;
}

INLINE float vec_largest(Vec x) {
    float largest = x.lane[0];
    EACH largest = x.lane[i] > largest ? x.lane[i] : largest;
    return largest;
}

INLINE Vec vec_sum_each(const Vec v[VEC]) { MAP(Vec, vec_sum(v[i])); }

/* As integers, magnitudes have the order of the floats, and NaN is above infinity. */
INLINE float larger_magnitude(float a, float b) {
    const uint32_t x = bits_of(fabsf(a)), y = bits_of(fabsf(b));
    return float_of(x > y ? x : y);
}

INLINE Vec vec_larger_magnitude(Vec a, Vec b) { MAP(Vec, larger_magnitude(a.lane[i], b.lane[i])); }
INLINE float vec_largest_magnitude(Vec x) {
    float largest = 0.0f;
    EACH largest = larger_magnitude(x.lane[i], largest);
    return largest;
}

INLINE IntVec int_zero(void) { MAP(IntVec, 0); }
INLINE IntVec int_add(IntVec a, IntVec b) { MAP(IntVec, a.lane[i] + b.lane[i]); }
INLINE Vec int_to_vec(IntVec x) { MAP(Vec, (float)x.lane[i]); }
INLINE int32_t int_sum(IntVec x) {
    int32_t sum = 0;
    EACH sum += x.lane[i];
    return sum;
}

/* NaN, which is in no comparison, becomes the lower end: C leaves open what a conversion of it would do. */
INLINE float clipped(float x) { return x > -32768.0f ? (x < 32767.0f ? x : 32767.0f) : -32768.0f; }
INLINE IntVec vec_to_int(Vec x) {
    MAP(IntVec, (int32_t)(bits_of(clipped(x.lane[i]) + ROUNDING) - bits_of(ROUNDING)));
}
INLINE void int_store8(int8_t *to, IntVec x) {
    EACH to[i] = (int8_t)(x.lane[i] < -128 ? -128 : x.lane[i] > 127 ? 127 : x.lane[i]);
}

/* A division of C rounds towards 0; what is divided here is above it. */
INLINE IntVec int_upper(IntVec x) { MAP(IntVec, (x.lane[i] + 128 + 256 * 256) / 256 - 256); }
INLINE IntVec int_lower(IntVec x) { MAP(IntVec, x.lane[i] - 256 * int_upper(x).lane[i]); }

/* A float16 has 10 bits of fraction and exponents of -14 to 15; below 2^-14 its steps stay those of 2^-14. */
INLINE float float_of_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | magnitude << 13);
    return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

INLINE Vec vec_load_half(const uint8_t *from) {
    uint16_t half[VEC];
    memcpy(half, from, sizeof half);
    MAP(Vec, float_of_half(half[i]));
}

INLINE Vec vec_load_codes(const uint8_t *from) { MAP(Vec, from[i]); }

INLINE uint16_t half_of(float x) {
    const uint16_t sign = (uint16_t)(bits_of(x) >> 16 & 0x8000);
    const float magnitude = fabsf(x);
    if (!(magnitude < 65520.0f)) return sign | (magnitude >= 65520.0f ? 0x7c00 : 0x7e00);
    int exponent;
    frexpf(magnitude, &exponent); /* below 2^exponent */
    if (magnitude < 0x1p-14f) exponent = -13;
    /* Steps: 1024 to 2048 for a normal number, the first 1024 of which count as one more of the exponent. */
    return sign | (uint16_t)((exponent + 13) * 1024 + (int)(ldexpf(magnitude, 11 - exponent) + ROUNDING - ROUNDING));
}
