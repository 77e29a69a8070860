/* See scratch.h. A block that is given back is kept for the next call, whichever thread that comes from: its memory
 * is then warm in the cache, and a thread that ends leaves none behind. */
#include "core/scratch.h"

#include <stdatomic.h>
#include <stdlib.h>

#define HEADER 64
#define PAGE 4096
#define SPARE 8 /* blocks that are kept: as many sessions may run at the same time without allocating */

typedef struct {
    size_t size; /* with this header, HEADER bytes */
} Block;

static _Atomic(Block *) spare[SPARE];

void *scratch_take(size_t size) {
    Block *block = NULL;
    const size_t whole = (size + HEADER + PAGE - 1) / PAGE * PAGE;
    for (int i = 0; i < SPARE && block == NULL; i++) block = atomic_exchange(&spare[i], NULL);
    if (block == NULL || block->size < whole) {
        free(block);
        block = aligned_alloc(HEADER, whole);
        if (block == NULL) return NULL;
        block->size = whole;
    }
    return (char *)block + HEADER;
}

void scratch_give(void *memory) {
    Block *block = (Block *)((char *)memory - HEADER), *none = NULL;
    for (int i = 0; i < SPARE; i++, none = NULL)
        if (atomic_compare_exchange_strong(&spare[i], &none, block)) return;
    free(block);
}

void scratch_free(void) {
    for (int i = 0; i < SPARE; i++) free(atomic_exchange(&spare[i], NULL));
}
