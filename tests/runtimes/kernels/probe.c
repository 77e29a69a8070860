/* The functions of isa/vec.h and isa/dot.h, one by one, for test_instruction_sets.py. */
#include "core/vec_math.h"
#include "isa/dot.h"

int lanes(void) { return VEC; }

/* One of the functions of vectors, on n floats each; n is a multiple of VEC. */
void unary(int which, int64_t n, const float *a, float *y) {
    for (int64_t i = 0; i < n; i += VEC) {
        const Vec x = vec_load(a + i);
        vec_store(y + i, which == 0 ? vec_exp(x) : which == 1 ? vec_round(x) : int_to_vec(vec_to_int(x)));
    }
}

void binary(int which, int64_t n, const float *a, const float *b, float *y) {
    for (int64_t i = 0; i < n; i += VEC) {
        const Vec x = vec_load(a + i), z = vec_load(b + i);
        const Vec sums[] = {vec_add(x, z),
                            vec_sub(x, z),
                            vec_mul(x, z),
                            vec_div(x, z),
                            vec_min(x, z),
                            vec_max(x, z),
                            vec_fma(x, z, vec_set(3.0f)),
                            vec_fms(x, z, vec_set(3.0f)),
                            vec_fnma(x, z, vec_set(3.0f)),
                            vec_larger_magnitude(x, z),
                            vec_scale2(x, z)};
        vec_store(y + i, sums[which]);
    }
}

/* y[0 .. VEC + 1]: a in the first `count` lanes, loaded and stored by lanes; z: a there, b elsewhere. */
void some(int64_t count, const float *a, const float *b, float *y, float *z) {
    const Lanes lanes = vec_lanes(count);
    vec_store_lanes(y, vec_load_lanes(a, lanes), lanes);
    vec_store(z, vec_select(lanes, vec_load(a), vec_load(b)));
}

/* Sum, largest, largest magnitude of VEC floats; then the sums of VEC vectors, v[i] from a + i. */
void reduce(const float *a, float *y) {
    Vec v[VEC];
    for (int i = 0; i < VEC; i++) v[i] = vec_load(a + i);
    y[0] = vec_sum(v[0]);
    y[1] = vec_largest(v[0]);
    y[2] = vec_largest_magnitude(vec_larger_magnitude(v[0], vec_set(0.0f)));
    vec_store(y + 3, vec_sum_each(v));
}

void halves(int64_t n, const uint8_t *from, float *y) {
    for (int64_t i = 0; i < n; i += VEC) vec_store(y + i, vec_load_half(from + 2 * i));
}

void to_half(int64_t n, const float *a, uint16_t *y) {
    for (int64_t i = 0; i < n; i++) y[i] = half_of(a[i]);
}

/* int8 of VEC floats, saturated, and the sum of their integers. */
int32_t to_int8(const float *a, int8_t *y) {
    const IntVec q = vec_to_int(vec_load(a));
    int_store8(y, q);
    return int_sum(int_add(q, int_zero()));
}

void codes(int64_t n, const uint8_t *from, float *y) {
    for (int64_t i = 0; i < n; i += VEC) vec_store(y + i, vec_load_codes(from + i));
}

/* int8 of the upper and of the lower half of VEC integers. */
void to_halves(const float *a, int8_t *upper, int8_t *lower) {
    const IntVec q = vec_to_int(vec_load(a));
    int_store8(upper, int_upper(q));
    int_store8(lower, int_lower(q));
}

/* One step of a tile, packed into `packed` (aligned to 64) and multiplied: y[VEC] = sums[VEC] + levels[VEC][STEP] x. */
void step(int low, int high, uint8_t *levels, uint8_t *packed, const int8_t *x, float *y) {
    Levels w;
    pack_levels(low, high, (uint8_t (*)[STEP])levels, packed);
    load_levels(low, high, packed, &w);
    prefetch(packed, VEC * STEP * (size_t)(low + high) / 8);
    const IntVec once = dot(&w, x, int_zero());
    vec_store(y, int_to_vec(dot(&w, x, once)));
}
