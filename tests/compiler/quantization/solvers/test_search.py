"""Searched scales: better than rounding, block by block, whatever rows come together."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Solved, Statistics
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.compiler.quantization.solvers.search import SearchedScales

ROWS = np.random.default_rng(0).normal(size=(12, 96)).astype(np.float32)


def scheme(name: str) -> Scheme:
    found = scheme_of(name)
    assert found is not None
    return found


def equal(one: Solved, other: Solved) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=False)
        for name in ("levels", "scales", "zeros", "row_scales")
        if getattr(one, name) is not None
    )


@pytest.mark.parametrize("name", ["int4@32", "int4-zero@32", "int4-offset@32", "qdq-int4@32", "q3@32", "q4@32"])
def test_errs_less_than_rounding(name: str) -> None:
    kind = scheme(name)
    searched, rounded = (
        np.square(dequantize(solver.solve(ROWS, None, kind), kind, 96) - ROWS).sum()
        for solver in (SearchedScales(), RoundToNearest())
    )
    assert searched < 0.96 * rounded


def test_rows_do_not_depend_on_each_other() -> None:
    for name in ("int4-offset@32", "q4@32"):
        whole, part = (SearchedScales().solve(rows, None, scheme(name)) for rows in (ROWS, ROWS[3:5]))
        assert equal(Solved(whole.levels[3:5], whole.scales[3:5]), Solved(part.levels, part.scales))


@pytest.mark.parametrize("name", ["int8@32", "q8@32", "fp8", "qdq-nvfp4"])
def test_what_search_does_not_improve_is_rounded(name: str) -> None:
    kind = scheme(name)
    solver = SearchedScales()
    assert equal(solver.solve(ROWS, None, kind), RoundToNearest().solve(ROWS, None, kind))
    assert solver.needs_layer(kind) == RoundToNearest().needs_layer(kind)


def test_moments_weigh_errors() -> None:
    kind, moments = scheme("int4@32"), np.eye(96)
    moments[:8, :8] *= 1e4
    weighted, even = (SearchedScales().solve(ROWS, seen, kind) for seen in (Statistics(moments), None))
    errors = [np.square(dequantize(solved, kind, 96) - ROWS)[:, :8].sum() for solved in (weighted, even)]
    assert errors[0] < 0.7 * errors[1]


def test_a_short_last_block_is_filled_up() -> None:
    solved = SearchedScales().solve(ROWS[:, :80], None, scheme("int4@32"))
    assert solved.levels.shape == (12, 96)
    assert np.abs(dequantize(solved, scheme("int4@32"), 80) - ROWS[:, :80]).max() < 0.4
