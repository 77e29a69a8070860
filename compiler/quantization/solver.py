"""What chooses a weight's numbers: the protocol of solvers, what they are given and what they return.

In: rows of a layer, what is known of its inputs, a scheme. Out: numbers, scales and zero points together, so that a
solver may choose one for the other's sake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmc.compiler.quantization.scheme import Scheme

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen of a layer's inputs x [tokens, k] on calibration text.

    Attributes:
        second_moments: Mean of xᵀx, [k, k] float64 (GPTQ), or None.
        means: Mean of \\|x\\|, [k] float64 (AWQ), or None.
    """

    second_moments: Array | None = None
    means: Array | None = None


@dataclass(frozen=True, eq=False)
class Solved:
    """Rows in small numbers; blocks lie along a row, the last one filled up with zeros.

    Attributes:
        levels: [n, blocks * block]: uint8 from 0 to 2^bits - 1, of which 2^(bits-1) stands for zero unless ``zeros``
            are integers; float8_e4m3fn or float4_e2m1fn for schemes of small floats.
        scales: [n, blocks], float32 (float8_e4m3fn for blocks of float4; packed: uint8 codes, times ``row_scales``).
        zeros: None; [n, blocks] uint8 zero points (packed: in units of 2^(bits-8) levels); or float32 offsets, for
            which 2^(bits-1) stands.
        matrix_scale: [] float32, which multiplies all scales; None where the scheme has none.
        row_scales: [n] float32, each of which multiplies the codes of its row's scales; None unless packed.
    """

    levels: Array
    scales: Array
    zeros: Array | None = None
    matrix_scale: Array | None = None
    row_scales: Array | None = None

    def zero_points(self) -> Array:
        """``zeros`` of a scheme that has them."""
        assert self.zeros is not None
        return self.zeros


class Solver(Protocol):
    """Equal solvers choose the same numbers; a solver is hashable and keeps nothing between calls."""

    def needs_layer(self, scheme: Scheme) -> bool:
        """Whether it must see all rows of a layer at once (GPTQ, AWQ); else it gets a few rows a time."""

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """Choose numbers.

        Args:
            rows: [n, k] output features by input features, in the type in which scales are stored: float32,
                float16 or bfloat16; all of the layer's, where :meth:`needs_layer` says so.
            seen: The layer's inputs; None where nothing was calibrated.
            scheme: In what to store them; k is a multiple of its block, or the last block is filled up.
        """


def pack(numbers: Array, bits: int) -> Array:
    """uint8 [n, m] as bytes [n, ceil(m * bits / 8)]: several of 1, 2 or 4 bits a byte, the first one lowest."""
    if bits == 8:
        return numbers
    count = 8 // bits
    if short := -numbers.shape[1] % count:
        numbers = np.pad(numbers, ((0, 0), (0, short)))
    # The bytes that become one are an integer of as many, which is pushed together in one stride: neighbours, then
    # pairs of them, and so on. What a shift leaves above the lowest byte is cut off.
    wide = np.ascontiguousarray(numbers).view(f"<u{count}")
    for step in range(count.bit_length() - 1):
        wide = wide | wide >> (8 - bits << step)
    packed: Array = wide.astype(np.uint8)
    return packed


def low_bits(bits: int) -> int:
    """How many of a packed number's bits lie in its low plane: 2, 4 or 8; the rest lie in the high one."""
    return max(low for low in (2, 4, 8) if low <= bits)


def low_plane(levels: Array, bits: int) -> Array:
    """The low plane of packed numbers, uint8 [n, m] as bytes [n, m * low / 8]."""
    low = low_bits(bits)
    return pack(levels & np.uint8(2**low - 1), low)


def high_plane(levels: Array, bits: int) -> Array:
    """The high plane of packed numbers that have one, uint8 [n, m] as bytes [n, m * (bits - low) / 8]."""
    low = low_bits(bits)
    return pack(levels >> np.uint8(low), bits - low)
