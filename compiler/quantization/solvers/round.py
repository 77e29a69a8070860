"""Rounding to nearest: each block of a row by itself, by its smallest and largest weight.

``nbits``: scales are float32 and may be negative. A symmetric block's is the weight of largest magnitude, sign
included, divided by the most negative integer, so that this weight is met exactly and all 2^bits levels are used (as
llama.cpp's Q4_0 does); a zero point lies where zero falls between the smallest and the largest weight; with an offset
both ends are levels, which stores weights that came in such blocks (GGUF's Q4_1, Q4_K) as they are. A block too small
for a scale has scale 0.

``qdq`` and ``fp8``: scales are positive, as TensorRT asks for: a block's largest weight meets the largest number or
its smallest the least, whichever needs the larger scale; zero points lie as above. Scales and offsets are rounded to
the type of the rows, in which they are stored (``fp8``: float32), and numbers are those of the rounded ones. A block
of nothing has scale 1.

``packed``: :mod:`.packed`.

A number in the middle of two is the even one, before a zero point is added. Sources: ONNX Runtime's contrib
operators; ONNX's DequantizeLinear-23; OCP's 8-bit and microscaling formats 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, Statistics
from llmc.compiler.quantization.solvers.block_extremes import block_extremes
from llmc.compiler.quantization.solvers.packed import round_packed

LARGEST_FP8, SMALLEST_FP8, LARGEST_FP4 = 448.0, 2.0**-9, 6.0
_TINY, _LEAST = np.finfo(np.float32).tiny, np.finfo(np.float32).smallest_subnormal
_ROWS = 64
"""Rows of a whole layer that are in memory as float32 at a time."""


@dataclass(frozen=True)
class RoundToNearest:
    """The solver that needs nothing but the rows."""

    def needs_layer(self, scheme: Scheme) -> bool:
        """Only for a scale of a whole matrix."""
        return scheme.storage == ir.DataType.FLOAT4E2M1

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """Round; what was seen changes nothing. See :class:`~llmc.compiler.quantization.solver.Solver`."""
        if self.needs_layer(scheme):
            return _nvfp4(rows, scheme)
        blocks = _blocks(rows, scheme)
        if scheme.form == "packed":
            return round_packed(blocks, scheme)
        if not scheme.storage.is_integer():
            return _fp8(blocks, scheme, np.float32 if scheme.form == "fp8" else rows.dtype)
        return _nbits(blocks, scheme) if scheme.form == "nbits" else _qdq(blocks, scheme, rows.dtype)


def _blocks(rows: Array, scheme: Scheme) -> Array:
    """[n, blocks, block] float32, zeros after the last feature."""
    wide = np.ascontiguousarray(rows, dtype=np.float32)
    count = scheme.blocks(wide.shape[1])
    if short := count * (scheme.block or wide.shape[1]) - wide.shape[1]:
        wide = np.pad(wide, ((0, 0), (0, short)))
    return wide.reshape(len(wide), count, -1)


def _nbits(blocks: Array, scheme: Scheme) -> Solved:
    (high, low), half, top = block_extremes(blocks), 2 ** (scheme.bits - 1), 2**scheme.bits - 1
    zeros, middle = None, np.full((), half, np.float32)
    if scheme.zero == "offset":
        scales = _nonzero((high - low) / top)
        zeros = (low + middle * scales).astype(np.float32)
        blocks = blocks - zeros[..., None]
    elif scheme.zero == "integer":
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        scales = _nonzero((high - low) / top)
        with np.errstate(divide="ignore", invalid="ignore"):
            middle = np.clip(np.where(scales == 0, 0, np.rint(-low / scales)), 0, top).astype(np.float32)
        zeros = middle.astype(np.uint8)
    else:
        scales = _nonzero(np.where(high > -low, high, low) / -half)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scales == 0, 0, 1 / scales).astype(np.float32)
    return Solved(_levels(blocks * inverse[..., None], middle, 0, top), scales, zeros)


def _qdq(blocks: Array, scheme: Scheme, dtype: np.dtype[np.generic]) -> Solved:
    (high, low), half = block_extremes(blocks), 2 ** (scheme.bits - 1)
    # In 8 bits the least number has no use where the largest is its mirror.
    least, zeros, middle = 1 - half if scheme.bits == 8 else -half, None, np.full((), half, np.float32)
    if scheme.zero == "offset":
        scales = _usable((high - low) / np.float32(2 * half - 1), dtype)
        zeros = _as_stored(low + np.float32(half) * scales, dtype)
        blocks = blocks - zeros[..., None]
    elif scheme.zero == "integer":
        high, low = np.maximum(high, 0), np.minimum(low, 0)
        scales = _usable((high - low) / np.float32(2 * half - 1), dtype)
        middle = np.clip(np.rint(-low / scales), 0, 2 * half - 1)
        zeros = middle.astype(np.uint8)
    else:
        scales = _usable(np.maximum(high / np.float32(half - 1), low / np.float32(least)), dtype)
    return Solved(_levels(blocks / scales[..., None], middle, least + half, 2 * half - 1), scales, zeros)


def _levels(scaled: Array, middle: Array, least: int, largest: int) -> Array:
    """[n, k] uint8 of blocks divided by their scales, which are overwritten."""
    np.rint(scaled, out=scaled)
    scaled += middle[..., None]
    np.clip(scaled, least, largest, out=scaled)
    return scaled.astype(np.uint8).reshape(len(scaled), -1)


def _fp8(blocks: Array, scheme: Scheme, dtype: np.typing.DTypeLike) -> Solved:
    largest = np.abs(blocks).max(axis=2) / np.float32(LARGEST_FP8)
    # One operator's scales may be float32's smallest numbers.
    scales = _usable(largest, dtype, _LEAST if scheme.form == "fp8" else _TINY)
    levels = np.clip(blocks / scales[..., None], -LARGEST_FP8, LARGEST_FP8).astype(ml_dtypes.float8_e4m3fn)
    return Solved(levels.reshape(len(blocks), -1), scales)


def _nvfp4(rows: Array, scheme: Scheme) -> Solved:
    """Two levels: the largest block scale of a matrix is E4M3's largest number."""
    largest = max(float(rows.max()), -float(rows.min()))
    matrix = _usable(np.asarray(largest / (LARGEST_FP4 * LARGEST_FP8), np.float32), rows.dtype)
    levels, scales = [], []
    for start in range(0, len(rows), _ROWS):
        blocks = _blocks(rows[start : start + _ROWS], scheme)
        scaled = np.abs(blocks).max(axis=2) / np.float32(LARGEST_FP4 * float(matrix))
        scales.append(np.clip(scaled, SMALLEST_FP8, LARGEST_FP8).astype(ml_dtypes.float8_e4m3fn))
        blocks = blocks / (scales[-1].astype(np.float32) * matrix)[..., None]
        codes = np.clip(blocks, -LARGEST_FP4, LARGEST_FP4).astype(ml_dtypes.float4_e2m1fn)
        levels.append(codes.reshape(len(blocks), -1))
    return Solved(np.concatenate(levels), np.concatenate(scales), matrix_scale=matrix)


def _nonzero(scales: Array) -> Array:
    """Scales as float32; one so small that its inverse overflows becomes 0, as its block then is."""
    return np.where(np.abs(scales) < _TINY, 0, scales).astype(np.float32)


def _usable(scales: Array, dtype: np.typing.DTypeLike, least: np.floating = _TINY) -> Array:
    """As stored; 1 in place of a scale by which nothing can be divided: what it scales is then 0."""
    stored = _as_stored(scales, dtype)
    return np.where(stored < least, np.float32(1), stored).astype(np.float32)


def _as_stored(numbers: Array, dtype: np.typing.DTypeLike) -> Array:
    """float32 that ``dtype`` holds."""
    rounded: Array = numbers.astype(dtype).astype(np.float32)
    return rounded
