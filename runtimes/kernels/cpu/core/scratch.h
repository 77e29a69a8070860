/* Memory that an operator works in during one call. */
#ifndef LLMC_SCRATCH_H
#define LLMC_SCRATCH_H

#include <stddef.h>

/* At least `size` bytes, aligned to 64, with any content; NULL without memory. Whoever takes memory gives it back. */
void *scratch_take(size_t size);
void scratch_give(void *memory);

/* Free what is kept for later calls. Memory in use stays. */
void scratch_free(void);

#endif
