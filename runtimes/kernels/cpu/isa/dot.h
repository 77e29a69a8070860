/* Products of weight levels and int8 activations. A tile is VEC output features; a step is STEP input features of it.
 * The compiler's command names the header of one instruction set, which draws its packing and defines:
 *
 *     GROUP                        rows of activations that share one unpacking, a multiple of 4: as many sums fit
 *                                  into registers beside the unpacked levels
 *     BODIES                       1 where a body of the product for each format is worth compiling, else 0
 *     Levels                       the unpacked levels of one step
 *     pack_levels(low, high, l, to)
 *                                  one step of a tile, VEC * STEP * (low + high) / 8 bytes without a gap; l[r][f] is
 *                                  the level of output feature r and input feature f; of its bits the low ones (2, 4
 *                                  or 8) lie in one plane and the high ones (none, 1 or 2) in another behind it
 *     load_levels(low, high, from, w)
 *                                  unpack them; to and from are aligned to 64 bytes where a step is so long
 *     dot(w, x, sum)               sum + the products with x[STEP], for each output feature
 *     prefetch(from, bytes)        ask for packed levels that a later step reads
 */
#ifndef LLMC_DOT_H
#define LLMC_DOT_H

#include "vec.h"

#define STEP 32

#include LLMC_DOT

#endif
