/* Products in plain C; see dot.h. The features of a step lie one behind the other, those of a tile's rows side by
 * side. A plane of b bits a level has 4 b bytes for each row, and features of 4 b in a byte lie 4 b apart:
 *
 *     4 bits: byte f VEC + r holds features f (low half) and f + 16 (high half) of row r
 *     8 bits: byte f VEC + r holds feature f of row r
 *     2 bits: byte f VEC + r holds features f, f + 8, f + 16, f + 24 of row r, the first in the lowest bits
 *     1 bit:  byte f VEC + r holds features f, f + 4, ... f + 28 of row r
 */
#define GROUP 4
#define BODIES 0

typedef struct {
    int16_t level[STEP][VEC];
} Levels;

/* Bits [shift, shift + bits) of each level. */
INLINE void pack_plane(int bits, int shift, uint8_t levels[VEC][STEP], uint8_t *to) {
    const int bytes = STEP * bits / 8;
    memset(to, 0, bytes * VEC);
    for (int f = 0; f < STEP; f++) {
        uint8_t *place = to + f % bytes * VEC;
        const int field = f / bytes * bits;
        EACH place[i] |= (uint8_t)((levels[i][f] >> shift & ((1 << bits) - 1)) << field);
    }
}

INLINE void pack_levels(int low, int high, uint8_t levels[VEC][STEP], uint8_t *to) {
    pack_plane(low, 0, levels, to);
    if (high) pack_plane(high, low, levels, to + VEC * STEP * low / 8);
}

INLINE void load_low_plane(const int bits, const uint8_t *from, Levels *w) {
    const int bytes = STEP * bits / 8, mask = (1 << bits) - 1;
    for (int f = 0; f < bytes; f++)
        for (int field = 0; field < 8 / bits; field++)
            EACH w->level[f + field * bytes][i] = from[f * VEC + i] >> field * bits & mask;
}

INLINE void add_high_plane(const int bits, int shift, const uint8_t *from, Levels *w) {
    const int bytes = STEP * bits / 8, mask = (1 << bits) - 1;
    for (int f = 0; f < bytes; f++)
        for (int field = 0; field < 8 / bits; field++)
            EACH w->level[f + field * bytes][i] |= (int16_t)((from[f * VEC + i] >> field * bits & mask) << shift);
}

INLINE void load_levels(int low, int high, const uint8_t *from, Levels *w) {
    if (low == 2) load_low_plane(2, from, w);
    if (low == 4) load_low_plane(4, from, w);
    if (low == 8) load_low_plane(8, from, w);
    if (high == 1) add_high_plane(1, low, from + VEC * STEP * low / 8, w);
    if (high == 2) add_high_plane(2, low, from + VEC * STEP * low / 8, w);
}

INLINE IntVec dot(const Levels *w, const int8_t *x, IntVec sum) {
    for (int f = 0; f < STEP; f++) EACH sum.lane[i] += w->level[f][i] * x[f];
    return sum;
}

INLINE void prefetch(const uint8_t *from, size_t bytes) { (void)from, (void)bytes; }
