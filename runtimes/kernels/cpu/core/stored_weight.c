/* See stored_weight.h. */
#include "core/stored_weight.h"

#include <string.h>

#include "contract.h"

_Static_assert(BLOCK_MULTIPLE % RUN == 0, "a run of levels lies in one block");

/* Add to levels what a plane of `bits` bits a level holds of them, `shift` bits up. */
static inline void read_plane(const uint8_t *from, const int bits, const int shift, uint8_t levels[RUN]) {
    const int each = 8 / bits, mask = (1 << bits) - 1;
    for (int byte = 0; byte < RUN / each; byte++)
        for (int i = 0; i < each; i++)
            levels[byte * each + i] |= (uint8_t)((from[byte] >> (i * bits) & mask) << shift);
}

/* The same of a plane of 1 bit: each byte eight times, so that a vector of levels takes a bit each. */
static inline void read_bits(const uint8_t *from, const int shift, uint8_t levels[RUN]) {
    static const uint8_t place[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    uint8_t bytes[RUN];
    for (int byte = 0; byte < RUN / 8; byte++) memset(bytes + 8 * byte, from[byte], 8);
    for (int i = 0; i < RUN; i++) levels[i] |= (uint8_t)((bytes[i] & place[i % 8] ? 1 : 0) << shift);
}

void read_levels(const StoredWeight *w, int64_t row, int64_t feature, uint8_t levels[RUN]) {
    const size_t place = (size_t)row * w->blocks * w->block_size + feature;
    const int low = LOW_BITS(w->bits);
    for (int i = 0; i < RUN; i++) levels[i] = 0;
    if (low == 2) read_plane(w->low + place / 4, 2, 0, levels);
    if (low == 4) read_plane(w->low + place / 2, 4, 0, levels);
    if (low == 8) read_plane(w->low + place, 8, 0, levels);
    if (w->bits - low == 1) read_bits(w->high + place / 8, low, levels);
    if (w->bits - low == 2) read_plane(w->high + place / 4, 2, low, levels);
}

void read_row(const StoredWeight *w, int64_t row, float *to) {
    const float unit = 1.0f / (float)(1 << (8 - w->bits));
    for (int64_t feature = 0; feature < w->k; feature += RUN) {
        const int64_t block = row * w->blocks + feature / w->block_size;
        const int64_t count = w->k - feature < RUN ? w->k - feature : RUN;
        const float code = (float)w->codes[block], zero = (float)(w->zeros ? w->zeros[block] : MIDDLE_CODE) * unit;
        uint8_t levels[RUN];
        read_levels(w, row, feature, levels);
        for (int64_t i = 0; i < count; i++) to[feature + i] = code * ((float)levels[i] - zero) * w->row_scales[row];
    }
}
