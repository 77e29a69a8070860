/* Memory that an operator works in during one call. */
#ifndef LLMC_SCRATCH_H
#define LLMC_SCRATCH_H

#include <stddef.h>

void *scratch_take(size_t size); /* bytes with any content, aligned to 64; NULL: there is no memory */
void scratch_give(void *memory); /* what was taken, back */
void scratch_free(void);         /* what is kept for later calls */

#endif
