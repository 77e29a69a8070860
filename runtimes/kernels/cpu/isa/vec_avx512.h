/* Vectors of AVX-512 (F, BW, VL, DQ, and F16C for float16); see vec.h. */
#include <immintrin.h>

#define VEC 16
typedef __m512 Vec;
typedef __m512i IntVec;
typedef __mmask16 Lanes;

INLINE Lanes vec_lanes(int64_t count) { return count >= 16 ? 0xffff : count > 0 ? (Lanes)((1u << count) - 1) : 0; }

INLINE Vec vec_load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void vec_store(float *to, Vec x) { _mm512_storeu_ps(to, x); }
INLINE Vec vec_set(float x) { return _mm512_set1_ps(x); }
INLINE Vec vec_load_lanes(const float *from, Lanes lanes) { return _mm512_maskz_loadu_ps(lanes, from); }
INLINE void vec_store_lanes(float *to, Vec x, Lanes lanes) { _mm512_mask_storeu_ps(to, lanes, x); }
INLINE Vec vec_load_half(const uint8_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
INLINE Vec vec_load_codes(const uint8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from)));
}
INLINE uint16_t half_of(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
INLINE Vec vec_select(Lanes lanes, Vec a, Vec b) { return _mm512_mask_mov_ps(b, lanes, a); }

INLINE Vec vec_add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
INLINE Vec vec_sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
INLINE Vec vec_mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
INLINE Vec vec_div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
INLINE Vec vec_fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec vec_fms(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }
INLINE Vec vec_fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE Vec vec_min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
INLINE Vec vec_max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
INLINE Vec vec_round(Vec x) { return _mm512_roundscale_ps(x, 0); }
INLINE Vec vec_scale2(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
INLINE float vec_sum(Vec x) { return _mm512_reduce_add_ps(x); }
INLINE float vec_largest(Vec x) { return _mm512_reduce_max_ps(x); }

/* As integers, magnitudes have the order of the floats, and NaN is above infinity. */
INLINE Vec vec_larger_magnitude(Vec a, Vec b) {
    const __m512i x = _mm512_castps_si512(_mm512_abs_ps(a)), y = _mm512_castps_si512(_mm512_abs_ps(b));
    return _mm512_castsi512_ps(_mm512_max_epu32(x, y));
}

INLINE float vec_largest_magnitude(Vec x) {
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_castps_si512(x));
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    return largest;
}

INLINE Vec vec_sum_each(const Vec v[VEC]) {
    __m512 a[8], b[4];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    /* b[i]: in each 128-bit part, partial sums of v[4i .. 4i+3]. */
    __m512 c = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x44), _mm512_shuffle_f32x4(b[0], b[1], 0xee));
    __m512 d = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x44), _mm512_shuffle_f32x4(b[2], b[3], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x88), _mm512_shuffle_f32x4(c, d, 0xdd));
}

INLINE IntVec int_zero(void) { return _mm512_setzero_si512(); }
INLINE IntVec int_add(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
INLINE int32_t int_sum(IntVec x) { return _mm512_reduce_add_epi32(x); }
INLINE IntVec int_upper(IntVec x) { return _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8); }
INLINE IntVec int_lower(IntVec x) { return _mm512_sub_epi32(x, _mm512_slli_epi32(int_upper(x), 8)); }
INLINE IntVec vec_to_int(Vec x) { return _mm512_cvtps_epi32(x); }
INLINE Vec int_to_vec(IntVec x) { return _mm512_cvtepi32_ps(x); }
INLINE void int_store8(int8_t *to, IntVec x) { _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(x)); }
