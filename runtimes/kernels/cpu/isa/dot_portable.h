/* Products in plain C; see dot.h. The features of a step lie one behind the other, those of a tile's rows side by
 * side:
 *
 *     4 bits: byte f VEC + r holds features f (low half) and f + 16 (high half) of row r
 *     8 bits: byte f VEC + r holds feature f of row r
 */
#define GROUP 4

typedef struct {
    int16_t level[STEP][VEC];
} Levels;

INLINE void pack_levels(int bits, uint8_t levels[VEC][STEP], uint8_t *to) {
    const int bytes = STEP * bits / 8;
    for (int f = 0; f < bytes; f++)
        EACH to[f * VEC + i] = (uint8_t)(bits == 8 ? levels[i][f] : levels[i][f] | levels[i][f + bytes] << 4);
}

INLINE void load_levels(int bits, const uint8_t *from, Levels *w) {
    const int bytes = STEP * bits / 8;
    for (int f = 0; f < bytes; f++) {
        EACH w->level[f][i] = bits == 8 ? from[f * VEC + i] : from[f * VEC + i] & 15;
        if (bits == 4) EACH w->level[f + bytes][i] = from[f * VEC + i] >> 4;
    }
}

INLINE IntVec dot(const Levels *w, const int8_t *x, IntVec sum) {
    for (int f = 0; f < STEP; f++) EACH sum.lane[i] += w->level[f][i] * x[f];
    return sum;
}

INLINE void prefetch(const uint8_t *from, size_t bytes) { (void)from, (void)bytes; }
