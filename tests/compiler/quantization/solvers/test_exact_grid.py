"""Weights on a grid come back as they were."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.quantization.scheme import scheme_of
from llmc.compiler.quantization.solver import Solved
from llmc.compiler.quantization.solvers.exact_grid import ExactGrid

from ..expanded import Array, expand

SCHEMES = {"signed": "int4", "points": "int4-zero", "offsets": "int4-offset"}
EVERY = [("signed", "int4"), ("signed", "int4-zero"), ("signed", "int4-offset"), ("points", "int4-zero")]
EVERY += [("points", "int4-offset"), ("offsets", "int4-offset")]


def solve(rows: Array, name: str) -> Solved:
    scheme = scheme_of(name)
    assert scheme is not None
    return ExactGrid().solve(rows, None, scheme)


def expanded_again(solved: Solved, half: int = 8) -> Array:
    """By the operators' specification, in float64."""
    levels = solved.levels.reshape(*solved.scales.shape, -1).astype(np.float64)
    scales = solved.scales.astype(np.float64)[..., None]
    if solved.zeros is None:
        values = (levels - half) * scales
    elif solved.zeros.dtype == np.uint8:
        values = (levels - solved.zeros[..., None]) * scales
    else:
        values = (levels - half) * scales + solved.zeros.astype(np.float64)[..., None]
    return values.reshape(len(levels), -1)


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_float32_weights_are_kept_to_the_last_bits(kind: str, name: str, block: int) -> None:
    expanded = expand(kind, 4, block)
    solved = solve(expanded.rows, f"{name}@{block}")
    assert solved.levels.dtype == np.uint8
    assert solved.levels.max() <= 15
    largest = np.repeat(np.abs(expanded.rows).reshape(12, -1, block).max(axis=2), block, axis=1)
    assert (np.abs(expanded_again(solved) - expanded.rows) <= 4e-7 * largest).all()
    if name == "int4-offset":
        np.testing.assert_array_equal(solved.levels.reshape(expanded.levels.shape), expanded.levels)


def test_weights_around_a_middle_are_kept_to_the_bit() -> None:
    """A file of signed integers has one number beside them, and so has the operator."""
    expanded = expand("signed", 4)
    solved = solve(expanded.rows, "int4@32")
    np.testing.assert_array_equal(expanded_again(solved).astype(np.float32), expanded.rows)
    np.testing.assert_array_equal(np.abs(solved.scales), expanded.steps)


@pytest.mark.parametrize(("dtype", "unit"), [(np.float16, 2.0**-11), (ml_dtypes.bfloat16, 2.0**-8)])
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_of_rounded_weights_the_grid_is_found_again(kind: str, name: str, dtype: Any, unit: float) -> None:
    """What is stored is nearer to the numbers of the file than the rounded floats are."""
    exact, rounded = expand(kind, 4), expand(kind, 4, dtype=dtype)
    again = expanded_again(solve(rounded.rows, f"{name}@32"))
    assert np.abs(rounded.rows - exact.rows).max() > 0
    assert np.square(again - exact.rows).mean() < 0.5 * np.square(rounded.rows - exact.rows).mean()
    peak = np.repeat(np.abs(exact.rows).reshape(12, 8, 32).max(axis=2), 32, axis=1)
    assert (np.abs(again - rounded.rows) <= 1.5 * unit * peak).all()


@pytest.mark.parametrize(("kind", "name"), [("signed", "int8"), ("points", "int8-zero"), ("offsets", "int8-offset")])
@pytest.mark.parametrize("bits", [5, 8])
def test_eight_bits(kind: str, name: str, bits: int) -> None:
    rows = expand(kind, bits).rows
    np.testing.assert_allclose(expanded_again(solve(rows, f"{name}@32"), 128), rows, rtol=0, atol=1e-6)


def test_a_grid_that_lies_the_other_way_round_has_a_negative_step() -> None:
    """-7 … 8 steps: integers from 0 to 15, of which 8 is zero, go down to -8 but up to 7 only."""
    rows = (np.arange(16, dtype=np.float32)[None] - 7) * np.float32(0.25)
    solved = solve(rows, "int4@16")
    assert solved.scales.tolist() == [[-0.25]]
    assert solved.levels.tolist() == [list(range(15, -1, -1))]


@pytest.mark.parametrize("name", ["int4@32", "int4-zero@32", "int4-offset@32"])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1e-40])
def test_blocks_whose_weights_are_alike(value: float, name: str) -> None:
    rows = expand("signed", 4, shape=(2, 64)).rows
    rows[0, :32] = value
    again = expanded_again(solve(rows, name))
    np.testing.assert_array_equal(again[0, :32].astype(np.float32), np.full(32, value, np.float32))
    np.testing.assert_allclose(again, rows, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", SCHEMES.values())
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rows_are_solved_alone(name: str, dtype: Any) -> None:
    """Also where some of them came rounded and others did not."""
    rows = np.concatenate([expand("signed", 4, dtype=each).rows[:3] for each in (dtype, np.float32)])
    whole = solve(rows, f"{name}@32")
    parts = [solve(rows[low:high], f"{name}@32") for low, high in ((0, 2), (2, 4), (4, 6))]
    for field in ("levels", "scales", "zeros"):
        if (expected := getattr(whole, field)) is not None:
            np.testing.assert_array_equal(np.concatenate([getattr(part, field) for part in parts]), expected)


def test_weights_that_changed_meanwhile_are_refused() -> None:
    rows = expand("offsets", 4).rows
    for name in ("int4@32", "int4-zero@32"):
        with pytest.raises(CheckpointError, match="lay on a quantization grid do no longer; compile the model again"):
            solve(rows, name)
    rows[-1, -1] += 0.0004
    with pytest.raises(CheckpointError, match="do no longer"):
        solve(rows, "int4-offset@32")


def test_nothing_is_seen_of_a_layer() -> None:
    scheme = scheme_of("int4@32")
    assert scheme is not None
    assert not ExactGrid().needs_layer(scheme)
    assert ExactGrid() == ExactGrid()
