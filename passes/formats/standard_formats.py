"""The arithmetic of weights that standard DequantizeLinear reads: rows of floats to small numbers and their scales.

In: [rows, features] float. Out: numbers [rows, features] and scales, so that ``weight = number * scale``:

    int8   one scale a row, symmetric
    fp8    E4M3, one scale a row
    int4   one scale a block of features, -8 ... 7, two a byte, the lower one first; symmetric, or with a float offset
    nvfp4  E2M1 and one E4M3 scale a block of 16, times one scale a matrix

Scales are positive, as TensorRT asks for: a block's largest value meets 7, or its smallest meets -8, whichever needs
the larger scale. Scales and offsets are rounded to the type of the rows, in which they are stored, and numbers are
those of the rounded ones. Sources: ONNX's DequantizeLinear-23; OCP's 8-bit and microscaling formats 1.0.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LARGEST_FP8, SMALLEST_FP8, LARGEST_FP4 = 448.0, 2.0**-9, 6.0
NVFP4_BLOCK = 16


def int8_scales(rows: Array) -> Array:
    """[rows] float32."""
    return _usable(np.abs(np.asarray(rows, np.float32)).max(axis=1) / np.float32(127), rows)


def int8(rows: Array) -> Array:
    """[rows, features] int8."""
    levels = np.rint(np.asarray(rows, np.float32) / int8_scales(rows)[:, None])
    return np.clip(levels, -127, 127).astype(np.int8)


def fp8_scales(rows: Array) -> Array:
    """[rows] float32."""
    return _usable(np.abs(np.asarray(rows, np.float32)).max(axis=1) / np.float32(LARGEST_FP8), rows)


def fp8(rows: Array) -> Array:
    """[rows, features] float8e4m3fn, rounded to nearest even."""
    scaled = np.asarray(rows, np.float32) / fp8_scales(rows)[:, None]
    made: Array = np.clip(scaled, -LARGEST_FP8, LARGEST_FP8).astype(ml_dtypes.float8_e4m3fn)
    return made


def int4_scales(rows: Array, block_size: int) -> Array:
    """[rows, blocks] float32."""
    blocks = _blocks(rows, block_size)
    return _usable(np.maximum(blocks.max(axis=2) / np.float32(7), blocks.min(axis=2) / np.float32(-8)), rows)


def int4(rows: Array, block_size: int) -> Array:
    """[rows, features / 2] uint8: two's complement, two a byte."""
    levels = np.rint(_blocks(rows, block_size) / int4_scales(rows, block_size)[..., None])
    return _pack(np.clip(levels, -8, 7).astype(np.int8).view(np.uint8).reshape(len(rows), -1) & 15)


def offset_int4_scales(rows: Array, block_size: int) -> Array:
    """[rows, blocks] float32, of blocks with an offset."""
    blocks = _blocks(rows, block_size)
    return _usable((blocks.max(axis=2) - blocks.min(axis=2)) / np.float32(15), rows)


def int4_offsets(rows: Array, block_size: int) -> Array:
    """[rows, blocks] float32: what the number 0 stands for, so that -8 is the block's smallest value."""
    lowest = _blocks(rows, block_size).min(axis=2)
    return _as_stored(lowest + np.float32(8) * offset_int4_scales(rows, block_size), rows)


def offset_int4(rows: Array, block_size: int) -> Array:
    """[rows, features / 2] uint8: ``weight = number * scale + offset``, which is GGUF's Q4_1 as it came."""
    around = _blocks(rows, block_size) - int4_offsets(rows, block_size)[..., None]
    levels = np.rint(around / offset_int4_scales(rows, block_size)[..., None])
    return _pack(np.clip(levels, -8, 7).astype(np.int8).view(np.uint8).reshape(len(rows), -1) & 15)


def uint4(rows: Array, block_size: int) -> Array:
    """[rows, features / 2] uint8: the numbers of :func:`offset_int4` from 0 to 15, two a byte."""
    flipped: Array = offset_int4(rows, block_size) ^ np.uint8(0x88)
    return flipped


def uint4_zero_points(rows: Array, block_size: int) -> Array:
    """[rows, blocks] float32: ``weight = (number - zero point) * scale``; no whole numbers."""
    zero: Array = np.float32(8) - int4_offsets(rows, block_size) / offset_int4_scales(rows, block_size)
    return zero


def nvfp4_scales(rows: Array, matrix_scale: float) -> Array:
    """[rows, blocks of 16] float8e4m3fn, to be multiplied by the matrix's scale."""
    largest = np.abs(_blocks(rows, NVFP4_BLOCK)).max(axis=2)
    scaled = np.clip(largest / np.float32(LARGEST_FP4 * matrix_scale), SMALLEST_FP8, LARGEST_FP8)
    made: Array = scaled.astype(ml_dtypes.float8_e4m3fn)
    return made


def nvfp4(rows: Array, matrix_scale: float) -> Array:
    """[rows, features / 2] uint8: E2M1, two a byte."""
    scales = nvfp4_scales(rows, matrix_scale).astype(np.float32) * np.float32(matrix_scale)
    scaled = _blocks(rows, NVFP4_BLOCK) / scales[..., None]
    clipped = np.clip(scaled, -LARGEST_FP4, LARGEST_FP4).astype(ml_dtypes.float4_e2m1fn)
    return _pack(clipped.view(np.uint8).reshape(len(rows), -1) & 15)


def nvfp4_matrix_scale(largest: float, dtype: npt.DTypeLike = np.float32) -> float:
    """Of a whole matrix, so that its largest block scale is E4M3's largest number; a value of ``dtype``."""
    return float(_usable(np.asarray(largest / (LARGEST_FP4 * LARGEST_FP8), np.float32), np.empty(0, dtype)))


def _blocks(rows: Array, block_size: int) -> Array:
    return np.asarray(rows, np.float32).reshape(len(rows), -1, block_size)


def _usable(scales: Array, rows: Array) -> Array:
    """As stored; 1 in place of a scale by which nothing can be divided: what it scales is then 0."""
    stored, tiny = _as_stored(scales, rows), np.float32(np.finfo(np.float32).tiny)
    return np.where(stored < tiny, np.float32(1), stored).astype(np.float32)


def _as_stored(numbers: Array, rows: Array) -> Array:
    """float32 that the type of the rows holds."""
    rounded: Array = numbers.astype(rows.dtype).astype(np.float32)
    return rounded


def _pack(numbers: Array) -> Array:
    """Two numbers of 4 bits a byte, the lower one first."""
    packed: Array = numbers[:, 0::2] | (numbers[:, 1::2] << 4)
    return packed
