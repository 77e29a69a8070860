"""On which grids the block formats of GGUF lie: what of a file can be kept, told by its values alone.

The table of docs/gguf.md. Levels are random; scales are those that quantizers make, neither zero nor without an end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmc.compiler.checkpoint.gguf_blocks import BLOCK_FORMATS, dequantize_blocks
from llmc.compiler.quantization.grid import Grid, find_grid

Array = np.ndarray[Any, Any]
ROWS, BLOCKS = 16, 4


def halves(rng: np.random.Generator, count: int, low: float, high: float) -> Array:
    """float16 numbers as bytes, [count, 2]."""
    return rng.uniform(low, high, count).astype(np.float16).view(np.uint8).reshape(count, 2)


def with_scale(at: int) -> Callable[[np.random.Generator, Array], None]:
    """A float16 scale, at a place."""

    def write(rng: np.random.Generator, data: Array) -> None:
        data[:, at : at + 2] = halves(rng, len(data), 0.01, 0.02)

    return write


def with_offset(at: int) -> Callable[[np.random.Generator, Array], None]:
    """A scale, and behind it a minimum below zero."""

    def write(rng: np.random.Generator, data: Array) -> None:
        data[:, at : at + 2] = halves(rng, len(data), 0.01, 0.02)
        data[:, at + 2 : at + 4] = halves(rng, len(data), -0.2, -0.1)

    return write


def q2_k(rng: np.random.Generator, data: Array) -> None:
    data[:, :16] |= 0x11  # no scale and no minimum of zero
    data[:, 80:82], data[:, 82:84] = halves(rng, len(data), 0.01, 0.02), halves(rng, len(data), 0.01, 0.02)


def k_minima(rng: np.random.Generator, data: Array) -> None:
    """Of Q4_K and Q5_K: none of the scales and minima of six bits is zero."""
    data[:, :2], data[:, 2:4] = halves(rng, len(data), 0.01, 0.02), halves(rng, len(data), 0.01, 0.02)
    data[:, 4:16] |= 0x11


def q6_k(rng: np.random.Generator, data: Array) -> None:
    data[:, 192:208] |= 1
    with_scale(208)(rng, data)


def iq4_xs(rng: np.random.Generator, data: Array) -> None:
    """Upper bits of scales at one, so that none is 32, which stands for zero."""
    data[:, 2:4] = 0x55
    with_scale(0)(rng, data)


def mxfp4(rng: np.random.Generator, data: Array) -> None:
    """Powers of two that are near each other."""
    data[:, 0] = rng.integers(118, 130, len(data))


# The type, its scales, and the grid in integers of four bits, else eight.
CASES: dict[str, tuple[Callable[[np.random.Generator, Array], None], Grid | None]] = {
    "Q4_0": (with_scale(0), Grid(4, 32, "none")),
    "Q4_1": (with_offset(0), Grid(4, 32, "offset")),
    "Q5_0": (with_scale(0), Grid(8, 32, "none")),
    "Q5_1": (with_offset(0), Grid(8, 32, "offset")),
    "Q8_0": (with_scale(0), Grid(8, 32, "none")),
    "Q2_K": (q2_k, Grid(4, 16, "offset")),
    "Q3_K": (with_scale(108), Grid(4, 16, "none")),
    "Q4_K": (k_minima, Grid(4, 32, "offset")),
    "Q5_K": (k_minima, Grid(8, 32, "offset")),
    "Q6_K": (q6_k, Grid(8, 16, "none")),
    "IQ4_NL": (with_scale(0), Grid(8, 32, "none")),
    "IQ4_XS": (iq4_xs, Grid(8, 32, "none")),
    "MXFP4": (mxfp4, Grid(8, 32, "none")),
    "F32": (lambda _rng, data: None, None),
}


def rows_of(name: str) -> Array:
    rng = np.random.default_rng(7)
    block = BLOCK_FORMATS[name]
    if name == "F32":
        return rng.standard_normal((ROWS, 256), dtype=np.float32)
    data = rng.integers(0, 256, (ROWS * BLOCKS, block.size), dtype=np.uint8)
    CASES[name][0](rng, data)
    return dequantize_blocks(data.reshape(ROWS, -1), name)


@pytest.mark.parametrize("name", CASES)
def test_a_type_lies_on_its_grid(name: str) -> None:
    rows = rows_of(name)
    assert np.isfinite(rows).all()
    expected = CASES[name][1]
    assert find_grid(rows, 8) == expected
    assert find_grid(rows, 4) == (expected if expected is not None and expected.bits == 4 else None)


def test_all_types_are_in_the_table() -> None:
    """But two types of floats."""
    assert set(BLOCK_FORMATS) - set(CASES) == {"F16", "BF16"}
