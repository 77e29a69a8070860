"""Blocks of integers as ONNX Runtime's operators read them: the bytes of rows, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Solved, pack
from llmc.compiler.quantization.solvers.round import RoundToNearest

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BlockFormat:
    """Rounding to nearest, part by part.

    Attributes:
        bits: 4 or 8.
        block_size: Features that share a scale.
        symmetric: No zero point; else an integer per block.
        offset: A float offset per block instead.
    """

    bits: int
    block_size: int
    symmetric: bool
    offset: bool = False

    @property
    def scheme(self) -> Scheme:
        zero = "-offset" if self.offset else "" if self.symmetric else "-zero"
        scheme = scheme_of(f"int{self.bits}{zero}@{self.block_size}")
        assert scheme is not None
        return scheme

    def solve(self, rows: Array) -> Solved:
        return RoundToNearest().solve(rows, None, self.scheme)

    def pack(self, rows: Array) -> Array:
        return pack(self.solve(rows).levels, self.bits)

    def scales(self, rows: Array) -> Array:
        return self.solve(rows).scales

    def zeros(self, rows: Array) -> Array:
        """Zero points or offsets."""
        zeros = self.solve(rows).zeros
        assert zeros is not None
        return zeros

    def packed_zero_points(self, rows: Array) -> Array:
        return pack(self.zeros(rows), self.bits)

    def offsets(self, rows: Array) -> Array:
        assert self.offset
        return self.zeros(rows)

    def dequantize(self, rows: Array) -> Array:
        """What the integers stand for, [rows, features] float32: the specification of what kernels compute."""
        solved = self.solve(rows)
        levels = solved.levels.reshape(*solved.scales.shape, self.block_size).astype(np.float32)
        middle = np.float32(2 ** (self.bits - 1)) if self.symmetric else self.zeros(rows)[..., None]
        values = (levels - middle) * solved.scales[..., None]
        if self.offset:
            values += self.zeros(rows)[..., None]
        whole: Array = values.reshape(len(rows), -1)[:, : rows.shape[1]]
        return whole
