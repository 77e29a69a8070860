/* See scratch.h. A block that is given back is kept for the next call, whichever thread that comes from: the same
 * memory is then warm in the cache, and none is left behind by a thread that ends. */
#include "core/scratch.h"

#include <stdatomic.h>
#include <stdlib.h>

#define ALIGNMENT 64
#define PAGE 4096
#define SPARE 8 /* blocks that are kept: as many sessions may run at the same time without allocating */

typedef struct {
    size_t size; /* bytes behind this header, which takes ALIGNMENT bytes */
} Block;

static _Atomic(Block *) spare[SPARE];

void *scratch_take(size_t size) {
    Block *block = NULL;
    for (int i = 0; i < SPARE && block == NULL; i++) block = atomic_exchange(&spare[i], NULL);
    if (block != NULL && block->size < size) {
        free(block);
        block = NULL;
    }
    if (block == NULL) {
        const size_t whole = (size + ALIGNMENT + PAGE - 1) / PAGE * PAGE;
        block = aligned_alloc(ALIGNMENT, whole);
        if (block == NULL) return NULL;
        block->size = whole - ALIGNMENT;
    }
    return (char *)block + ALIGNMENT;
}

void scratch_give(void *memory) {
    Block *block = (Block *)((char *)memory - ALIGNMENT);
    for (int i = 0; i < SPARE; i++) {
        Block *none = NULL;
        if (atomic_compare_exchange_strong(&spare[i], &none, block)) return;
    }
    free(block);
}

void scratch_free(void) {
    for (int i = 0; i < SPARE; i++) free(atomic_exchange(&spare[i], NULL));
}
