/* What a thread of this machine can do at most: read memory, multiply floats, multiply int8. A benchmark runs these
 * on several threads at a time and compares engines with them; no operator calls them.
 *
 * Floor: of a read, one load for each vector; of a round of floats, CHAINS multiply-adds that do not wait for each
 * other; of a round of int8, what a product of GROUP rows with one unpacked step of weights does, from registers and
 * the first cache.
 */
#include "ceiling.h"
#include "isa/dot.h"

enum { CHAINS = 16, STREAMS = 4 };

float llmc_ceiling_read(const float *from, int64_t count) {
    Vec largest[STREAMS];
    for (int i = 0; i < STREAMS; i++) largest[i] = vec_set(0.0f);
    for (int64_t at = 0; at + STREAMS * VEC <= count; at += STREAMS * VEC)
        for (int i = 0; i < STREAMS; i++) largest[i] = vec_max(largest[i], vec_load(from + at + i * VEC));
    float most = 0.0f;
    for (int i = 0; i < STREAMS; i++) most = vec_largest(largest[i]) > most ? vec_largest(largest[i]) : most;
    return most;
}

double llmc_ceiling_float(int64_t rounds, float *sink) {
    Vec sum[CHAINS];
    /* From memory, so that no compiler knows the factors. */
    const Vec factor = vec_set(sink[0]), term = vec_set(sink[1]);
    for (int i = 0; i < CHAINS; i++) sum[i] = vec_set((float)i);
    for (int64_t round = 0; round < rounds; round++)
        for (int i = 0; i < CHAINS; i++) sum[i] = vec_fma(sum[i], factor, term);
    for (int i = 1; i < CHAINS; i++) sum[0] = vec_add(sum[0], sum[i]);
    sink[0] = vec_sum(sum[0]);
    return 2.0 * CHAINS * VEC * (double)rounds;
}

double llmc_ceiling_int8(int64_t rounds, float *sink) {
    _Alignas(64) uint8_t packed[VEC * STEP];
    _Alignas(64) int8_t rows[GROUP][STEP];
    IntVec sum[GROUP];
    Levels levels;
    memset(packed, (int)sink[0], sizeof packed);
    memset(rows, (int)sink[1], sizeof rows);
    load_levels(8, 0, packed, &levels);
    for (int row = 0; row < GROUP; row++) sum[row] = int_zero();
    for (int64_t round = 0; round < rounds; round++)
        for (int row = 0; row < GROUP; row++) sum[row] = dot(&levels, rows[row], sum[row]);
    for (int row = 1; row < GROUP; row++) sum[0] = int_add(sum[0], sum[row]);
    sink[0] = vec_sum(int_to_vec(sum[0]));
    return 2.0 * GROUP * VEC * STEP * (double)rounds;
}
