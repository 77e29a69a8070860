"""The arithmetic of block-wise quantization: rows of floats to packed integers, scales and zero points.

In: [rows, features] float. Out: the layouts that com.microsoft::MatMulNBits and GatherBlockQuantized read:

    value = (integer - zero point) * scale,  one scale (and zero point) per ``block_size`` features
    integers of 4 bits: two a byte, the lower one first; zero points packed the same way along the blocks

Integers are the nearest; a value in the middle of two gets the even one before the zero point is added.

Symmetric blocks take as scale the value of largest magnitude, sign included, divided by the most negative integer, so
that this value is met exactly and all 2^bits levels are used (as llama.cpp's Q4_0 does).

Blocks with an offset keep their smallest and largest value instead, and one more float per block:

    value = (integer - 2^(bits-1)) * scale + offset

which stores weights that came in such blocks (GGUF's Q4_1, Q4_K) as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import UsageError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockFormat:
    """How blocks are quantized.

    Attributes:
        bits: 4 or 8.
        block_size: Features that share a scale.
        symmetric: Zero point fixed at 2^(bits-1); else an integer stored per block.
        offset: Zero point fixed, and a float offset stored per block; excludes ``symmetric = False``.
    """

    bits: int
    block_size: int
    symmetric: bool
    offset: bool = False

    def __post_init__(self) -> None:
        """Refuse two kinds of zero point at once.

        Raises:
            UsageError: a zero point and an offset.
        """
        if self.offset and not self.symmetric:
            raise UsageError("a block has a zero point or an offset, not both")

    def pack(self, rows: Array) -> Array:
        """[rows, blocks * block_size * bits / 8] uint8."""
        blocks = self._blocks(rows)
        scales, zeros = self._parameters(blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = np.where(scales == 0, 0, 1 / scales).astype(np.float32)
        if self.offset:
            blocks = blocks - self._offsets(blocks)[..., None]
        levels = np.rint(blocks * inverse[..., None])
        levels += zeros[..., None]
        np.clip(levels, 0, 2**self.bits - 1, out=levels)
        return _pack(levels.astype(np.uint8).reshape(len(rows), -1), self.bits)

    def scales(self, rows: Array) -> Array:
        """[rows, blocks] float32."""
        return self._parameters(self._blocks(rows))[0]

    def packed_zero_points(self, rows: Array) -> Array:
        """[rows, ceil(blocks * bits / 8)] uint8."""
        zeros = self._parameters(self._blocks(rows))[1].astype(np.uint8)
        return _pack(zeros, self.bits)

    def offsets(self, rows: Array) -> Array:
        """[rows, blocks] float32; zeros where the format has none."""
        made: Array = self._offsets(self._blocks(rows))
        return made

    def dequantize(self, rows: Array) -> Array:
        """What the integers stand for, [rows, features] float32: the specification of what kernels compute."""
        blocks = self._blocks(rows)
        scales, zeros = self._parameters(blocks)
        levels = _unpack(self.pack(rows), self.bits).reshape(blocks.shape).astype(np.float32)
        values = (levels - zeros[..., None]) * scales[..., None]
        if self.offset:
            values += self._offsets(blocks)[..., None]
        return values.reshape(len(rows), -1)[:, : rows.shape[1]]

    def _blocks(self, rows: Array) -> Array:
        """[rows, blocks, block_size] float32, zeros after the last feature."""
        wide = np.ascontiguousarray(rows, dtype=np.float32)
        if short := -wide.shape[1] % self.block_size:
            wide = np.pad(wide, ((0, 0), (0, short)))
        return wide.reshape(len(wide), math.ceil(wide.shape[1] / self.block_size), self.block_size)

    def _parameters(self, blocks: Array) -> tuple[Array, Array]:
        """Scale and zero point of each block, float32."""
        high, low = blocks.max(axis=2), blocks.min(axis=2)
        if self.offset:
            scales = _nonzero((high - low) / (2**self.bits - 1))
            return scales, np.full(scales.shape, 2 ** (self.bits - 1), np.float32)
        if self.symmetric:
            extreme = np.where(high > -low, high, low)
            half = 2 ** (self.bits - 1)
            return _nonzero(extreme / -half), np.full(extreme.shape, half, np.float32)
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        scales = _nonzero((high - low) / (2**self.bits - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            zeros = np.where(scales == 0, 0, np.rint(-low / scales))
        return scales, np.clip(zeros, 0, 2**self.bits - 1).astype(np.float32)

    def _offsets(self, blocks: Array) -> Array:
        """What the middle level stands for: the smallest value plus half the levels."""
        if not self.offset:
            return np.zeros(blocks.shape[:2], np.float32)
        scales, zeros = self._parameters(blocks)
        middle: Array = (blocks.min(axis=2) + zeros * scales).astype(np.float32)
        return middle


def _nonzero(scales: Array) -> Array:
    """Scales as float32; one so small that its inverse overflows becomes 0, as its block then is."""
    return np.where(np.abs(scales) < np.finfo(np.float32).tiny, 0, scales).astype(np.float32)


def _pack(levels: Array, bits: int) -> Array:
    if bits == 8:
        return levels
    if levels.shape[1] % 2:
        levels = np.pad(levels, ((0, 0), (0, 1)))
    packed: Array = levels[:, 0::2] | (levels[:, 1::2] << 4)
    return packed


def _unpack(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed
    levels = np.empty((packed.shape[0], packed.shape[1] * 2), np.uint8)
    levels[:, 0::2], levels[:, 1::2] = packed & 15, packed >> 4
    return levels
