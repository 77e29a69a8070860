/* See product.h. */
#include "core/product.h"

#include <math.h>

#include "contract.h"
#include "core/scratch.h"
#include "core/vec_math.h"
#include "isa/dot.h"

#define ROWS_PER_TASK 64
#define STRETCHES 64
#define FEW_ROWS 16 /* below, one thread prepares them sooner than several are woken */

_Static_assert(HALF_MULTIPLE % VEC == 0 && HEAD_MULTIPLE % VEC == 0 && BLOCK_MULTIPLE % STEP == 0,
               "an instruction set asks for more than the contract");

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int start_product(Product *p) {
    const size_t blocks = (size_t)(p->rows * p->matrix->blocks);
    p->stretches = p->rows < FEW_ROWS ? 1 : smaller(p->rows, STRETCHES);
    p->row_tasks = (p->rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    const size_t normed = p->gamma != NULL || p->skip != NULL ? (size_t)(p->stretches * p->matrix->k) : 0;
    const size_t values = blocks * p->matrix->block_size * p->quantized.planes;
    p->quantized.scales = scratch_take((2 * blocks + normed) * sizeof(float) + values);
    if (p->quantized.scales == NULL) return -1;
    p->quantized.sums = p->quantized.scales + blocks;
    p->normed = p->quantized.sums + blocks;
    p->quantized.values = (int8_t *)(p->normed + normed);
    return 0;
}

void end_product(const Product *p) { scratch_give(p->quantized.scales); }

static void prepare_row(const Product *p, int64_t row, float *normed) {
    const int64_t k = p->matrix->k;
    const float *a = p->a + row * k;
    if (p->gamma == NULL && p->skip == NULL) {
        quantize_row(p->matrix, a, &p->quantized, row);
        return;
    }
    const float *skip = p->skip ? p->skip + row * k : NULL;
    float *sum = p->sum ? p->sum + row * k : NULL;
    Vec squares = vec_set(0.0f);
    for (int64_t i = 0; i < k; i += VEC) {
        const Lanes lanes = vec_lanes(k - i);
        Vec x = vec_load_lanes(a + i, lanes);
        if (skip) x = vec_add(x, vec_load_lanes(skip + i, lanes));
        if (sum) vec_store_lanes(sum + i, x, lanes);
        vec_store_lanes(normed + i, x, lanes);
        squares = vec_fma(x, x, squares);
    }
    const Vec inverse = vec_set(1.0f / sqrtf(vec_sum(squares) / (float)k + p->epsilon));
    for (int64_t i = 0; i < k && p->gamma; i += VEC) {
        const Lanes lanes = vec_lanes(k - i);
        const Vec x = vec_mul(vec_load_lanes(normed + i, lanes), inverse);
        vec_store_lanes(normed + i, vec_mul(x, vec_load_lanes(p->gamma + i, lanes)), lanes);
    }
    quantize_row(p->matrix, normed, &p->quantized, row);
}

void prepare_stretch(void *product, size_t index) {
    const Product *p = product;
    const int64_t i = (int64_t)index, end = p->rows * (i + 1) / p->stretches;
    for (int64_t row = p->rows * i / p->stretches; row < end; row++)
        prepare_row(p, row, p->normed + i * p->matrix->k);
}

INLINE Vec activate(int activation, Vec x) {
    Vec z = x;
    if (activation == GELU_TANH) {
        /* 0.5 x (1 + tanh(u)) = x * sigmoid(2u) */
        const Vec cube = vec_mul(vec_mul(x, x), x);
        z = vec_mul(vec_fma(cube, vec_set(0.044715f), x), vec_set(1.5957691216f));
    }
    const Vec e = vec_exp(vec_sub(vec_set(0.0f), z));
    return vec_div(x, vec_add(e, vec_set(1.0f)));
}

static void finish_tile(const Product *p, int64_t tile, int64_t first, int64_t count, const float *values,
                        const float *up) {
    const int64_t column = tile * VEC;
    const Lanes lanes = vec_lanes(p->out - column);
    const Vec none = vec_set(0.0f);
    const Vec bias = p->bias ? vec_load_lanes(p->bias + column, lanes) : none;
    const Vec up_bias = p->bias && up ? vec_load_lanes(p->bias + p->out + column, lanes) : none;
    for (int64_t r = 0; r < count; r++) {
        Vec v = vec_add(vec_load(values + r * VEC), bias);
        if (up) v = vec_mul(activate(p->activation, v), vec_add(vec_load(up + r * VEC), up_bias));
        vec_store_lanes(p->y + (first + r) * p->out + column, v, lanes);
    }
}

size_t product_tasks(const Product *p) { return (size_t)((p->out + VEC - 1) / VEC * p->row_tasks); }

void product_task(void *product, size_t index) {
    const Product *p = product;
    const int64_t tile = (int64_t)index / p->row_tasks, first = (int64_t)index % p->row_tasks * ROWS_PER_TASK;
    const int64_t count = smaller(p->rows - first, ROWS_PER_TASK);
    float values[ROWS_PER_TASK * VEC], up[ROWS_PER_TASK * VEC];
    multiply_tile(p->matrix, &p->quantized, tile, first, count, values);
    if (p->activation) multiply_tile(p->matrix, &p->quantized, tile + p->out / VEC, first, count, up);
    finish_tile(p, tile, first, count, values, p->activation ? up : NULL);
}
