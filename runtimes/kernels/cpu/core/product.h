/* A product with what surrounds it, in tasks that may run at the same time:
 *
 *     y = norm(a + skip) * W + bias    or    y = activation(gate) * up, [gate up] = norm(a + skip) * W + bias
 *
 * Rows of activations are prepared first (norm, then integers by block), in stretches; then each task computes one
 * tile of output features for some rows. With an activation, a task computes the tile of the gate and that of the
 * upper half.
 */
#ifndef LLMC_PRODUCT_H
#define LLMC_PRODUCT_H

#include "core/block_matmul.h"

typedef struct {
    const PackedMatrix *matrix;
    int activation; /* of contract.h; 0: none, the plain product */
    float epsilon;
    int64_t rows, out;         /* of the result */
    const float *a, *skip;     /* [rows, k]; skip may be NULL */
    const float *gamma, *bias; /* [k] of an RMSNorm, [n]; each may be NULL */
    float *sum, *y;            /* a + skip [rows, k], or NULL; [rows, out] */
    QuantizedRows quantized;   /* its planes are filled in */
    float *normed;             /* a row [k] for each stretch */
    int64_t stretches, row_tasks;
} Product;

int start_product(Product *product);               /* divide it into tasks, from what is filled in; -1: no memory */
void prepare_stretch(void *product, size_t index); /* index < stretches */
void product_task(void *product, size_t index);    /* index < product_tasks(), after all stretches */
size_t product_tasks(const Product *product);
void end_product(const Product *product); /* in any case */

#endif
