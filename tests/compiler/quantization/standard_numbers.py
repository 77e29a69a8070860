"""Numbers as DequantizeLinear reads them, part by part, rounded to nearest; and 8-bit floats in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.quantization.scheme import scheme_of
from llmc.compiler.quantization.solver import Solved, pack
from llmc.compiler.quantization.solvers.round import RoundToNearest

Array = npt.NDArray[Any]


def solve(rows: Array, name: str) -> Solved:
    scheme = scheme_of(name)
    assert scheme is not None
    return RoundToNearest().solve(rows, None, scheme)


def int8(rows: Array) -> Array:
    """[rows, features] int8."""
    return (solve(rows, "qdq-int8").levels ^ np.uint8(128)).view(np.int8)


def int8_scales(rows: Array) -> Array:
    """[rows]."""
    return solve(rows, "qdq-int8").scales[:, 0]


def fp8(rows: Array) -> Array:
    """[rows, features] float8e4m3fn."""
    return solve(rows, "qdq-fp8").levels


def fp8_scales(rows: Array) -> Array:
    """[rows]."""
    return solve(rows, "qdq-fp8").scales[:, 0]


def int4(rows: Array, block_size: int) -> Array:
    """[rows, features / 2] uint8: two's complement, two a byte."""
    return pack(solve(rows, f"qdq-int4@{block_size}").levels ^ np.uint8(8), 4)


def int4_scales(rows: Array, block_size: int) -> Array:
    """[rows, blocks]."""
    return solve(rows, f"qdq-int4@{block_size}").scales


def offset_int4(rows: Array, block_size: int) -> Array:
    """[rows, features / 2] uint8."""
    return pack(solve(rows, f"qdq-int4-offset@{block_size}").levels ^ np.uint8(8), 4)


def offset_int4_scales(rows: Array, block_size: int) -> Array:
    """[rows, blocks]."""
    return solve(rows, f"qdq-int4-offset@{block_size}").scales


def int4_offsets(rows: Array, block_size: int) -> Array:
    """[rows, blocks]: what the number 0 stands for."""
    zeros = solve(rows, f"qdq-int4-offset@{block_size}").zeros
    assert zeros is not None
    return zeros


def nvfp4(rows: Array) -> Array:
    """[rows, features / 2] uint8: E2M1, two a byte."""
    return pack(solve(rows, "qdq-nvfp4").levels.view(np.uint8) & 15, 4)


def nvfp4_scales(rows: Array) -> Array:
    """[rows, blocks of 16] float8e4m3fn, to be multiplied by the matrix's scale."""
    return solve(rows, "qdq-nvfp4").scales


def nvfp4_matrix_scale(rows: Array) -> float:
    scale = solve(rows, "qdq-nvfp4").matrix_scale
    assert scale is not None
    return float(scale)


def fp8_blocks(rows: Array, block_size: int) -> Array:
    """[rows, features] float8e4m3fn of the product's operator."""
    return solve(rows, f"fp8@{block_size}").levels


def fp8_block_scales(rows: Array, block_size: int) -> Array:
    """[rows, blocks]."""
    return solve(rows, f"fp8@{block_size}").scales
