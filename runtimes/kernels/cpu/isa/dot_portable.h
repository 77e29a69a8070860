/* Products in plain C; see dot.h. The features of a step lie one behind the other, those of a tile's rows side by
 * side. A plane of b bits a level has 4 b bytes for each row, and features of 4 b in a byte lie 4 b apart:
 *
 *     4 bits: byte f VEC + r holds features f (low half) and f + 16 (high half) of row r
 *     8 bits: byte f VEC + r holds feature f of row r
 *     2 bits: byte f VEC + r holds features f, f + 8, f + 16, f + 24 of row r, the first in the lowest bits
 *     1 bit:  byte f VEC + r holds features f, f + 4, ... f + 28 of row r
 */
#define GROUP 4

typedef struct {
    int16_t level[STEP][VEC];
} Levels;

/* Bits [shift, shift + bits) of each level. */
INLINE void pack_plane(int bits, int shift, uint8_t levels[VEC][STEP], uint8_t *to) {
    const int rows = STEP * bits / 8;
    memset(to, 0, rows * VEC);
    for (int f = 0; f < STEP; f++) {
        uint8_t *place = to + f % rows * VEC;
        const int field = f / rows * bits;
        EACH place[i] |= (uint8_t)((levels[i][f] >> shift & ((1 << bits) - 1)) << field);
    }
}

INLINE void pack_levels(int low, int high, uint8_t levels[VEC][STEP], uint8_t *to) {
    pack_plane(low, 0, levels, to);
    if (high) pack_plane(high, low, levels, to + VEC * STEP * low / 8);
}

INLINE void load_plane(int bits, int shift, const uint8_t *from, Levels *w) {
    const int rows = STEP * bits / 8, mask = (1 << bits) - 1;
    for (int f = 0; f < STEP; f++) {
        const uint8_t *place = from + f % rows * VEC;
        const int field = f / rows * bits;
        EACH w->level[f][i] = (int16_t)((shift ? w->level[f][i] : 0) | (place[i] >> field & mask) << shift);
    }
}

INLINE void load_levels(int low, int high, const uint8_t *from, Levels *w) {
    load_plane(low, 0, from, w);
    if (high) load_plane(high, low, from + VEC * STEP * low / 8, w);
}

INLINE IntVec dot(const Levels *w, const int8_t *x, IntVec sum) {
    for (int f = 0; f < STEP; f++) EACH sum.lane[i] += w->level[f][i] * x[f];
    return sum;
}

INLINE void prefetch(const uint8_t *from, size_t bytes) { (void)from, (void)bytes; }
