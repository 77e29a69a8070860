/* Products of AVX-512 VNNI; see dot.h. VPDPBUSD multiplies 16 output features with 4 input features and leaves one
 * sum for each output feature, so a step is 8 of them:
 *
 *     4 bits: 4 registers; byte i of lane r of register j holds feature 4j+i (low half) and 4(j+4)+i (high half)
 *     8 bits: 8 registers; byte i of lane r of register j holds feature 4j+i
 *
 * Floor of a step and a row: 8 VPDPBUSD, 512 multiplications; of a step: its 256 or 512 bytes from memory.
 */
#define GROUP 8 /* 8 sums, 8 unpacked registers */

typedef struct {
    __m512i part[8];
} Levels;

INLINE void pack_levels(int bits, uint8_t levels[VEC][STEP], uint8_t *to) {
    memset(to, 0, VEC * STEP * bits / 8);
    for (int r = 0; r < VEC; r++)
        for (int f = 0; f < STEP; f++) {
            const int j = f / 4, high = bits == 4 && j >= 4;
            to[(high ? j - 4 : j) * 64 + r * 4 + f % 4] |= (uint8_t)(levels[r][f] << (high ? 4 : 0));
        }
}

INLINE void load_levels(int bits, const uint8_t *from, Levels *w) {
    if (bits == 8) {
        for (int j = 0; j < 8; j++) w->part[j] = _mm512_load_si512(from + 64 * j);
        return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (int j = 0; j < 4; j++) {
        __m512i packed = _mm512_load_si512(from + 64 * j);
        w->part[j] = _mm512_and_si512(packed, low);
        w->part[j + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
    }
}

INLINE IntVec dot(const Levels *w, const int8_t *x, IntVec sum) {
    __m512i other = _mm512_setzero_si512();
    for (int j = 0; j < 8; j += 2) {
        int32_t a, b;
        memcpy(&a, x + 4 * j, 4);
        memcpy(&b, x + 4 * j + 4, 4);
        sum = _mm512_dpbusd_epi32(sum, w->part[j], _mm512_set1_epi32(a));
        other = _mm512_dpbusd_epi32(other, w->part[j + 1], _mm512_set1_epi32(b));
    }
    return _mm512_add_epi32(sum, other);
}

INLINE void prefetch(const uint8_t *from, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) _mm_prefetch((const char *)from + line, _MM_HINT_T0);
}
