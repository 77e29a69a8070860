/* What the operators of the domain llmc.cpu take, as compiler/graph/operators/cpu.py says and a test compares. An
 * engine made on one machine is opened on another, so no instruction set may ask for more than this. */
#ifndef LLMC_CONTRACT_H
#define LLMC_CONTRACT_H

#define IS_BITS(bits) ((bits) == 4 || (bits) == 8)                        /* of a quantized weight */
#define IS_CODED_BITS(bits) (((bits) >= 2 && (bits) <= 6) || (bits) == 8) /* of one whose scales are codes */
#define LOW_BITS(bits) ((bits) <= 3 ? 2 : (bits) <= 6 ? 4 : 8) /* of a level in the low plane; the rest is high */
#define BLOCK_MULTIPLE 32                                      /* input features of a block */
#define HALF_MULTIPLE 16                                       /* output features of each half of a gated product */
#define HEAD_MULTIPLE 32                                       /* head sizes, up to LARGEST_HEAD */
#define LARGEST_HEAD 256
#define IS_ACTIVATION_BITS(bits) ((bits) == 8 || (bits) == 16) /* of activations that are multiplied */

enum { SILU = 1, GELU_TANH = 2 }; /* activations of a gated product */

enum {
    IN_A,
    IN_WEIGHT,
    IN_SCALES,
    IN_ZERO_POINTS,
    IN_BIAS,
    IN_GAMMA,
    IN_SKIP,
    IN_OFFSETS,
    IN_HIGH,
    IN_ROW_SCALES,
    MATMUL_INPUTS
};

enum { IN_QUERY, IN_KEY, IN_VALUE, IN_PAST_KEY, IN_PAST_VALUE, IN_TOTAL, IN_CHUNK, IN_COS, IN_SIN, ATTENTION_INPUTS };

enum { OF_IDS, OF_WEIGHT, OF_SCALES, OF_ZERO_POINTS, OF_HIGH, OF_ROW_SCALES, GATHER_INPUTS }; /* of GatherNBits */

#endif
