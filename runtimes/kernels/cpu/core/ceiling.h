/* The ceilings of one thread, for ctypes: the library's other entry points. */
#ifndef LLMC_CEILING_H
#define LLMC_CEILING_H

#include <stdint.h>

#ifdef __GNUC__
#define EXPORTED __attribute__((visibility("default")))
#else
#define EXPORTED
#endif

/* Read `count` floats, none of them negative, a multiple of four vectors; the largest. */
EXPORTED float llmc_ceiling_read(const float *from, int64_t count);

/* Multiply and add in registers: sum = sum * sink[0] + sink[1]. Returns how many operations that were, and leaves a
 * result in sink[0]. */
EXPORTED double llmc_ceiling_float(int64_t rounds, float *sink);

/* The same of products of levels sink[0] with int8 sink[1]. */
EXPORTED double llmc_ceiling_int8(int64_t rounds, float *sink);

#endif
