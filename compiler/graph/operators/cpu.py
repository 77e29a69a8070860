"""Operators of the domain ``llmc.cpu``, which a CPU's ``engine.onnx`` is made of: their inputs, and what they take.

    MatMulNBits(a, …)          →  y = norm(a + skip) * weight + bias                       sum = a + skip
    GatedMatMulNBits(a, …)     →  y = activation(gate) * up, [gate up] as above            sum = a + skip
    GatherNBits(ids, …)        →  rows of weight [.., k], float
    GroupQueryAttention(…)     →  attention over a shared cache, as com.microsoft's, with halves rotated

A weight [n, k] has one of two formats. In a product its parts are constants, packed when a session is made.

    with scales   w = scale (level - zero point), or scale (level - 2^(bits - 1)) + offset: ``weight``, ``scales``,
                  ``zero_points`` or ``offsets`` as com.microsoft::MatMulNBits and llmc's products beside it have them
    with codes    w = row scale * code (level - zero point)
                  ``weight``       uint8 [n, blocks, block_size low / 8], low bits of each level: 2 of 2 or 3 bits,
                                   4 of 4 to 6, 8 of 8; lower features in lower bits
                  ``high``         uint8 [n, blocks, block_size (bits - low) / 8], the bits above; absent without any
                  ``scales``       uint8 [n, blocks], the codes; ``row_scales`` float32 [n]
                  ``zero_points``  uint8 [n, blocks], in units of 2^(bits - 8); absent: 2^(bits - 1)

``activation_bits`` is 8 (also where it is absent) or 16: a product's activations are rounded to such integers by row
and block. ``norm`` is an RMSNorm over the last axis, where ``gamma`` is given; ``skip`` has the shape of ``a``.
``total`` holds each row's tokens after this chunk, less 1, ``chunk`` its valid tokens in this chunk; ``cos`` and
``sin`` are [positions, head / 2]. What is absent of ``key`` and ``value`` lies beside the query, in this order; a key
comes with a value.

Passes make calls of what is accepted here, and an engine that is made on one machine is opened on another: no
instruction set may ask for more. ``runtimes/kernels/cpu/contract.h`` states the same for the operators, which refuse
the rest; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from llmc.compiler.graph.operators.signature import Signature

DOMAIN, VERSION = "llmc.cpu", 1
_PRODUCT = ("a", "weight", "scales", "zero_points", "bias", "gamma", "skip", "offsets", "high", "row_scales")
MATMUL = Signature(DOMAIN, "MatMulNBits", _PRODUCT, ("y", "sum"))
GATED_MATMUL = Signature(DOMAIN, "GatedMatMulNBits", _PRODUCT, ("y", "sum"))
GATHER = Signature(DOMAIN, "GatherNBits", ("ids", "weight", "scales", "zero_points", "high", "row_scales"))
ATTENTION = Signature(
    DOMAIN,
    "GroupQueryAttention",
    ("query", "key", "value", "past_key", "past_value", "total", "chunk", "cos", "sin"),
    ("output", "present_key", "present_value"),
)
BITS = (4, 8)
"""Of a level of a weight with scales."""

CODED_BITS = (2, 3, 4, 5, 6, 8)
"""Of a level of a weight with codes."""

ACTIVATION_BITS = (8, 16)
BLOCK_MULTIPLE, HALF_MULTIPLE, HEAD_MULTIPLE, LARGEST_HEAD = 32, 16, 32, 256


class Activation(IntEnum):
    """The attribute ``activation`` of a gated product."""

    SILU = 1
    GELU_TANH = 2


def low_bits(bits: int) -> int:
    """How many of a coded level's bits lie in its low plane; the rest lies in the high one."""
    return 2 if bits <= 3 else 4 if bits <= 6 else 8


def refused_format(bits: int, block_size: int, *, coded: bool = False) -> str | None:
    """Why a weight of ``bits`` in blocks of ``block_size`` input features is not taken; None where it is.

    Args:
        coded: Whether its scales are codes.
    """
    taken = CODED_BITS if coded else BITS
    if bits in taken and block_size > 0 and block_size % BLOCK_MULTIPLE == 0:
        return None
    accepted = ", ".join(map(str, taken[:-1])) + f" or {taken[-1]}"
    return f"{DOMAIN} takes {accepted} bits in blocks of a multiple of {BLOCK_MULTIPLE}, not {bits} and {block_size}"


def refused_halves(sizes: Sequence[int]) -> str | None:
    """Why parts of these sizes are no gate and upper half; None where they are."""
    if len(sizes) == 2 and sizes[0] == sizes[1] and sizes[0] % HALF_MULTIPLE == 0:
        return None
    return f"its halves are {list(sizes)}, not two of the same multiple of {HALF_MULTIPLE}"


def refused_head(head: int | str | None) -> str | None:
    """Why heads of this size, or of one that is not known, are not taken; None where they are."""
    if isinstance(head, int) and 0 < head <= LARGEST_HEAD and head % HEAD_MULTIPLE == 0:
        return None
    return f"{DOMAIN} takes head sizes that are multiples of {HEAD_MULTIPLE} up to {LARGEST_HEAD}, not {head}"
