/* Vectors of floats. The compiler's command names the header of one instruction set, which defines:
 *
 *     VEC                                       lanes of a vector; it divides every multiple of contract.h
 *     Vec, IntVec, Lanes                        VEC floats, VEC 32-bit integers, the first some of a vector's lanes
 *     vec_lanes(count)                          the first `count` lanes: all from VEC up, none from 0 down
 *     vec_load, vec_store, vec_set              at any address; one value in all lanes
 *     vec_load_lanes, vec_store_lanes           nothing outside of the lanes is touched; what is not loaded is 0
 *     vec_load_half(from), half_of(x)           VEC float16 to float32; a float32 to float16, rounded to nearest even
 *     vec_load_codes(from)                      VEC uint8 to float
 *     vec_select(lanes, a, b)                   a in the lanes, b in the others
 *     vec_add, vec_sub, vec_mul, vec_div        a op b
 *     vec_fma, vec_fms, vec_fnma (a, b, c)      a b + c, a b - c, c - a b; rounded once or twice
 *     vec_min, vec_max                          where a lane of one is NaN: b's, or NaN
 *     vec_round(x), vec_scale2(x, n)            to the nearest integer, |x| < 2^22; x 2^n, n an integer, -126 to 127
 *     vec_sum, vec_largest                      of all lanes; vec_sum_each(v[VEC]): lane i is the sum of v[i]'s
 *     vec_larger_magnitude(a, b)                |a| or |b|, whichever is larger; NaN is larger than infinity
 *     vec_largest_magnitude(x)                  of the lanes of such a result
 *     vec_to_int(x), int_to_vec(i)              to the nearest integer, |x| < 2^15, halves to even; NaN to anything
 *     int_zero, int_add, int_sum, int_store8    int_store8 stores each lane as int8, saturated
 *     int_upper(i), int_lower(i)                i = 256 upper + lower, lower from -128 to 127
 */
#ifndef LLMC_VEC_H
#define LLMC_VEC_H

#include <stdint.h>
#include <string.h>

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#include LLMC_VEC

#endif
