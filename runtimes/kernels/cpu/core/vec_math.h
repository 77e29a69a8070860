/* Functions of vectors that are the same for all instruction sets. */
#ifndef LLMC_VEC_MATH_H
#define LLMC_VEC_MATH_H

#include "isa/vec.h"

/* exp with a relative error below 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2]. NaN stays NaN. */
INLINE Vec vec_exp(Vec x) {
    /* Where one operand is NaN, minimum and maximum are the second. */
    x = vec_min(vec_set(88.3f), vec_max(vec_set(-87.3f), x));
    Vec n = vec_round(vec_mul(x, vec_set(1.44269504f)));
    Vec r = vec_fnma(n, vec_set(0.693359375f), x);
    r = vec_fnma(n, vec_set(-2.12194440e-4f), r);
    Vec p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_fma(p, vec_mul(r, r), vec_add(r, vec_set(1.0f)));
    return vec_scale2(p, n);
}

#endif
