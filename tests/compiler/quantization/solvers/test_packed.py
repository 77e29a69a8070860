"""Rounding of packed weights: codes, zero points and levels of rows whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.quantization.scheme import PACKED_BITS
from llmc.compiler.quantization.solvers.round import RoundToNearest

from ....passes.graphs import draw
from ..packed_numbers import dequantize, packed_scheme, solve

Array = npt.NDArray[Any]
NAMES = [f"q{bits}{end}" for bits in PACKED_BITS for end in ("", "-symmetric")]


def rows_of(*blocks: tuple[float, float]) -> Array:
    """A row of blocks of 64 weights, evenly spaced from the first number to the second."""
    return np.concatenate([np.linspace(low, high, 64, dtype=np.float32) for low, high in blocks])[None]


def test_codes_are_steps_in_units_of_the_row() -> None:
    scheme, solved = solve(rows_of((-1, 14), (-0.5, 1.03), (0, 0), (-0.01, 0.01)), "q4")
    assert solved.row_scales is not None
    np.testing.assert_allclose(solved.row_scales, [15 / 15 / 255], rtol=1e-6)
    assert solved.row_scales.dtype == np.float32
    # 1.53 / 15 · 255 is 26.01; a block that is hardly there keeps a step; nothing has none.
    assert solved.scales.tolist() == [[255, 26, 0, 1]]
    assert {solved.scales.dtype, solved.levels.dtype} == {np.dtype(np.uint8)}
    assert solved.zeros is not None
    # (15 - (-1 + 14)) / 2 = 1 level, 16 sixteenths; (15 - 0.53 · 255 / 26) / 2 = 4.90, 78; the middle of 15 is 7.5.
    assert solved.zeros.tolist() == [[16, 78, 120, 120]]
    assert scheme.block == 64


def test_levels_belong_to_the_rounded_scale_and_zero_point() -> None:
    row = rows_of((-1, 14), (-0.5, 1.03))
    _, solved = solve(row, "q4")
    assert solved.zeros is not None
    step, zero = 26 / 255, solved.zeros[0, 1] / 16
    wanted = np.clip(np.rint(row[0, 64:] / step + zero), 0, 15)
    assert solved.levels[0, 64:].tolist() == wanted.tolist()
    assert solved.levels.shape == (1, 128)


def test_symmetric_blocks_meet_the_end_that_needs_the_wider_step() -> None:
    _, solved = solve(rows_of((-8, 1), (-1, 3.52)), "q4-symmetric")
    assert solved.zeros is None
    assert solved.row_scales is not None
    np.testing.assert_allclose(solved.row_scales, [1 / 255], rtol=1e-6)
    # 3.52 is the level 7 above the middle: a step of 0.503, 128.2 / 255.
    assert solved.scales.tolist() == [[255, 128]]
    assert (solved.levels[0, 0], solved.levels[0, 127]) == (0, 15)


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_is_off_by_more_than_rounding(name: str) -> None:
    """Half a step, or what a rounded step cuts off at the ends."""
    rows = draw(16, 256, seed=3)
    scheme, solved = solve(rows, name)
    assert solved.row_scales is not None
    scales = (solved.row_scales[:, None] * solved.scales).repeat(256 // solved.scales.shape[1], axis=1)
    assert solved.levels.max() == 2**scheme.bits - 1
    error = np.abs(dequantize(solved, scheme, 256) - rows) / scales
    # A code is off by half at most, of 60 at least here; half a zero point's place beside.
    assert solved.scales.min() > 60
    cut = (2**scheme.bits - 1) * 0.5 / 60
    assert error.max() <= 0.5 + cut + 2.0 ** (scheme.bits - 9)
    assert np.median(error) < 0.3


@pytest.mark.parametrize(("name", "loss"), [("q3", 0.25), ("q4", 0.12), ("q5", 0.06), ("q6", 0.03), ("q8", 0.01)])
def test_a_bit_more_halves_the_error(name: str, loss: float) -> None:
    rows = draw(32, 512, seed=4)
    scheme, solved = solve(rows, name)
    error = np.sqrt(np.square(dequantize(solved, scheme, 512) - rows).mean() / np.square(rows).mean())
    assert loss / 2 < error < loss


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_nothing_stay_nothing(name: str) -> None:
    rows = np.zeros((3, 64), np.float32)
    rows[1, 5] = 1e-39
    rows[2] = draw(64)
    scheme, solved = solve(rows, name)
    assert solved.row_scales is not None
    assert solved.row_scales[:2].tolist() == [0, 0]
    values = dequantize(solved, scheme, 64)
    assert not values[:2].any()
    assert np.isfinite(values).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", PACKED_BITS)
def test_a_block_of_one_sign_has_its_zero_at_an_end(bits: int, sign: int) -> None:
    rows = sign * rows_of((1, 2))
    scheme, solved = solve(rows, f"q{bits}")
    assert solved.zeros is not None
    assert solved.zeros[0, 0] == (0 if sign > 0 else 256 - 2 ** (8 - bits))
    assert np.abs(dequantize(solved, scheme, 64) - rows).max() <= 2 / (2**bits - 1) / 2 * 1.01


@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from(NAMES), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_rows_are_rounded_by_themselves(n: int, k: int, name: str, seed: int) -> None:
    """Alone, or beside others; the end of the last block is filled up and changes nothing."""
    rows = draw(n, k, seed=seed)
    scheme = packed_scheme(name, k)
    together = RoundToNearest().solve(rows, None, scheme)
    for row in range(n):
        alone = RoundToNearest().solve(rows[row : row + 1], None, scheme)
        assert (alone.levels[0] == together.levels[row]).all()
        assert (alone.scales[0] == together.scales[row]).all()
    assert together.levels.shape == (n, scheme.blocks(k) * (scheme.block or 0))
    assert not RoundToNearest().needs_layer(scheme)


def test_half_precision_is_rounded_as_its_values_are() -> None:
    rows = draw(4, 128).astype(np.float16)
    half, full = (solve(given, "q4")[1] for given in (rows, rows.astype(np.float32)))
    assert (half.levels == full.levels).all()
    assert half.row_scales is not None
    assert half.row_scales.dtype == np.float32
