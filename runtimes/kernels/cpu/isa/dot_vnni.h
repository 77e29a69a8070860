/* Products of AVX-512 VNNI; see dot.h. VPDPBUSD multiplies 16 output features with 4 input features and leaves one
 * sum for each output feature, so a step is 8 of them, its parts. Byte i of lane r of part j is the level of output
 * feature r and input feature 4j+i. A plane of b bits a level is b registers, parts of the same register b apart, the
 * first in the lowest bits:
 *
 *     8 bits: register j holds part j
 *     4 bits: register j holds parts j (low half of each byte) and j+4 (high half)
 *     2 bits: register j holds parts j, j+2, j+4, j+6
 *     1 bit:  a mask for each part: bit 4r+i of the 64 bits j is that of byte i of lane r
 *
 * Floor of a step and a row: 8 VPDPBUSD, 512 multiplications; of a step: its 64 bytes a bit from memory.
 */
#define GROUP 8 /* 8 sums, 8 unpacked registers */
#define BODIES 1

typedef struct {
    __m512i part[8];
} Levels;

/* Bits [shift, shift + bits) of the levels of each part. */
INLINE void pack_plane(const int bits, int shift, const __m512i part[8], uint8_t *to) {
    const __m512i some = _mm512_set1_epi8((char)((1 << bits) - 1));
    for (int j = 0; j < bits && bits > 1; j++) {
        __m512i packed = _mm512_setzero_si512();
        for (int i = 0; i < 8 / bits; i++) {
            const __m512i field = _mm512_and_si512(_mm512_srli_epi16(part[j + i * bits], shift), some);
            packed = _mm512_or_si512(packed, _mm512_slli_epi16(field, i * bits));
        }
        _mm512_store_si512(to + 64 * j, packed);
    }
    for (int j = 0; j < 8 && bits == 1; j++) {
        const uint64_t mask = _cvtmask64_u64(_mm512_test_epi8_mask(part[j], _mm512_set1_epi8((char)(1 << shift))));
        memcpy(to + 8 * j, &mask, 8);
    }
}

INLINE void pack_levels(int low, int high, uint8_t levels[VEC][STEP], uint8_t *to) {
    __m512i part[8];
    for (int j = 0; j < 8; j++) {
        uint8_t bytes[64];
        for (int r = 0; r < VEC; r++) memcpy(bytes + 4 * r, levels[r] + 4 * j, 4);
        part[j] = _mm512_loadu_si512(bytes);
    }
    if (low == 2) pack_plane(2, 0, part, to);
    if (low == 4) pack_plane(4, 0, part, to);
    if (low == 8) pack_plane(8, 0, part, to);
    if (high == 1) pack_plane(1, low, part, to + 64 * low);
    if (high == 2) pack_plane(2, low, part, to + 64 * low);
}

INLINE void add_high_bits(int low, int high, const uint8_t *from, Levels *w) {
    if (high == 1) {
        const __m512i one = _mm512_set1_epi8((char)(1 << low));
        for (int j = 0; j < 8; j++) {
            uint64_t mask;
            memcpy(&mask, from + 8 * j, 8);
            w->part[j] = _mm512_mask_add_epi8(w->part[j], _cvtu64_mask64(mask), w->part[j], one);
        }
        return;
    }
    /* Field j / 2 of a byte to the bits above the low ones, which are 4. */
    const __m512i two = _mm512_set1_epi8((char)(3 << low));
    for (int j = 0; j < 2; j++) {
        const __m512i packed = _mm512_load_si512(from + 64 * j);
        const __m512i moved[] = {_mm512_slli_epi16(packed, 4), _mm512_slli_epi16(packed, 2), packed,
                                 _mm512_srli_epi16(packed, 2)};
        for (int i = 0; i < 4; i++)
            w->part[j + 2 * i] = _mm512_ternarylogic_epi32(w->part[j + 2 * i], moved[i], two, 0xf8); /* a | (b & c) */
    }
}

/* Parts of a plane of `bits` bits a level. */
INLINE void load_plane(const int bits, const uint8_t *from, Levels *w) {
    const __m512i some = _mm512_set1_epi8((char)((1 << bits) - 1));
    for (int j = 0; j < bits; j++) {
        const __m512i packed = _mm512_load_si512(from + 64 * j);
        w->part[j] = bits == 8 ? packed : _mm512_and_si512(packed, some);
        for (int i = 1; i < 8 / bits; i++)
            w->part[j + i * bits] = _mm512_and_si512(_mm512_srli_epi16(packed, i * bits), some);
    }
}

INLINE void load_levels(int low, int high, const uint8_t *from, Levels *w) {
    if (low == 8)
        load_plane(8, from, w);
    else if (low == 4)
        load_plane(4, from, w);
    else
        load_plane(2, from, w);
    if (high) add_high_bits(low, high, from + 64 * low, w);
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
