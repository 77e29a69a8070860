"""GPTQ against the textbook: the inverse of the moments, its Cholesky factor, feature after feature, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llmc.compiler.base.errors import LlmcError
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Solved, Statistics
from llmc.compiler.quantization.solvers.block_grid import BlockGrid
from llmc.compiler.quantization.solvers.gptq import Gptq
from llmc.compiler.quantization.solvers.round import RoundToNearest

pytestmark = pytest.mark.usefixtures("either_arithmetic")
Array = npt.NDArray[Any]
ROWS, FEATURES, BLOCK = 5, 96, 32


def scheme(name: str = "int4-offset@32") -> Scheme:
    found = scheme_of(name)
    assert found is not None
    return found


def rows_and_moments(features: int = FEATURES, rows: int = ROWS, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(400, features)) @ generator.normal(size=(features, features))
    x = mixed * np.exp(generator.normal(size=features))
    return generator.normal(size=(rows, features)).astype(np.float32), x.T @ x


def textbook(rows: Array, moments: Array, kind: Scheme, damping: float, order: Array) -> Array:
    """Frantar et al., algorithm 1, with a grid for each block when it is reached; values [n, k] float64."""
    weight, hessian = rows.astype(np.float64)[:, order], moments[order][:, order].copy()
    hessian += damping * np.diagonal(moments).mean() * np.eye(len(order))
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    grid, values = BlockGrid(kind, np.dtype(np.float32), 1), np.zeros_like(weight)
    steps = None
    for j in range(len(order)):
        if j % BLOCK == 0:
            block = torch.from_numpy(np.ascontiguousarray(weight[:, j : j + BLOCK].T).astype(np.float32))
            steps = grid.fit(block, torch.ones(BLOCK, 1))
        assert steps is not None
        levels = steps.levels(torch.from_numpy(weight[:, j].astype(np.float32)), grid.low, grid.top)
        values[:, j] = steps.values(levels).double().numpy()
        error = (weight[:, j] - values[:, j]) / factor[j, j]
        weight[:, j + 1 :] -= np.outer(error, factor[j, j + 1 :])
    back = np.argsort(order)
    return values[:, back]


def cost(solved: Solved, kind: Scheme, rows: Array, moments: Array) -> float:
    difference = (dequantize(solved, kind, rows.shape[1]) - rows).astype(np.float64)
    return float(np.einsum("nk,kl,nl->", difference, moments, difference))


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("name", ["int4@32", "int4-zero@32", "int4-offset@32", "qdq-int4@32", "qdq-int4-offset@32"])
def test_equals_the_textbook(name: str, damping: float) -> None:
    rows, moments = rows_and_moments()
    solver = Gptq(damping=damping, clippings=1)
    solved = solver.solve(rows, Statistics(moments), scheme(name))
    wanted = textbook(rows, moments, scheme(name), damping, np.arange(FEATURES))
    np.testing.assert_allclose(dequantize(solved, scheme(name), FEATURES), wanted, rtol=0, atol=2e-4)


def test_blocks_in_order_of_activation_equal_the_textbook_in_that_order() -> None:
    rows, moments = rows_and_moments()
    diagonal, places = np.diagonal(moments), np.arange(FEATURES).reshape(-1, BLOCK)
    sorted_blocks = [block[np.argsort(-diagonal[block], kind="stable")] for block in places]
    order = np.concatenate(sorted(sorted_blocks, key=lambda block: -float(diagonal[block].sum())))
    assert not np.array_equal(order, np.arange(FEATURES))
    solved = Gptq(order="blocks", clippings=1).solve(rows, Statistics(moments), scheme())
    wanted = textbook(rows, moments, scheme(), 0.01, order)
    np.testing.assert_allclose(dequantize(solved, scheme(), FEATURES), wanted, rtol=0, atol=2e-4)


MANY = ["int4@32", "int4-zero@32", "int8-offset@32", "qdq-int8", "q2@32", "q3@32", "q4", "q5@32", "q4-symmetric@32"]


@pytest.mark.parametrize("order", ["none", "blocks", "features"])
@pytest.mark.parametrize("name", MANY)
def test_costs_much_less_than_rounding(name: str, order: Any) -> None:
    rows, moments = rows_and_moments(128, 64)
    solved = Gptq(order=order).solve(rows, Statistics(moments), scheme(name))
    rounded = RoundToNearest().solve(rows, None, scheme(name))
    assert cost(solved, scheme(name), rows, moments) < 0.6 * cost(rounded, scheme(name), rows, moments)
    assert (solved.levels.shape, solved.scales.shape) == (rounded.levels.shape, rounded.scales.shape)
    assert (solved.levels.dtype, solved.scales.dtype) == (rounded.levels.dtype, rounded.scales.dtype)
    assert (solved.zeros is None) == (rounded.zeros is None)
    assert (solved.row_scales is None) == (rounded.row_scales is None)


def test_searched_grids_cost_less() -> None:
    rows, moments = rows_and_moments(128, 64)
    costs = [
        cost(Gptq(clippings=count).solve(rows, Statistics(moments), scheme()), scheme(), rows, moments)
        for count in (1, 12)
    ]
    assert costs[1] < 0.8 * costs[0]


def test_a_row_does_not_depend_on_the_others() -> None:
    rows, moments = rows_and_moments(128, 64)
    prepared = Gptq().prepare(torch.from_numpy(moments), scheme("q4@32"))
    together, alone = prepared.solve(rows), prepared.solve(rows[7:8])
    assert np.array_equal(together.levels[7:8], alone.levels)
    assert np.array_equal(together.scales[7:8], alone.scales)


def test_a_panel_of_features_ends_where_a_block_does_not() -> None:
    """Rows that are one block, of more features than a panel."""
    rows, moments = rows_and_moments(160)
    kind = scheme("qdq-int8")
    solved = Gptq(clippings=1).solve(rows, Statistics(moments), kind)
    weight, factor = rows.astype(np.float64), moments + 0.01 * np.diagonal(moments).mean() * np.eye(160)
    factor = np.linalg.cholesky(np.linalg.inv(factor)).T
    scales = solved.scales.astype(np.float64)
    for j in range(160):
        value = np.rint(weight[:, j] / scales[:, 0]).clip(-127, 127)
        assert np.array_equal(value + 128, solved.levels[:, j])
        weight[:, j + 1 :] -= np.outer((weight[:, j] - value * scales[:, 0]) / factor[j, j], factor[j, j + 1 :])


def test_features_that_are_never_seen_are_rounded() -> None:
    rows, moments = rows_and_moments()
    moments[40, :] = moments[:, 40] = 0
    solved = Gptq(clippings=1).solve(rows, Statistics(moments), scheme())
    off = np.abs(dequantize(solved, scheme(), FEATURES)[:, 40] - rows[:, 40])
    assert (off <= 0.5001 * solved.scales[:, 1]).all()


def test_moments_that_are_no_numbers_are_refused() -> None:
    rows, moments = rows_and_moments()
    moments[3, 3] = np.nan
    with pytest.raises(LlmcError, match="activations overflow"):
        Gptq().solve(rows, Statistics(moments), scheme())


def test_rows_alone_are_refused() -> None:
    with pytest.raises(LlmcError, match="second moments"):
        Gptq().solve(rows_and_moments()[0], None, scheme())


def test_indefinite_moments_are_damped_until_they_can_be_factored() -> None:
    rows, moments = rows_and_moments()
    moments -= 2 * np.linalg.eigvalsh(moments)[5] * np.eye(FEATURES)
    solved = Gptq(damping=1e-9).solve(rows, Statistics(moments), scheme())
    assert np.isfinite(dequantize(solved, scheme(), FEATURES)).all()


def test_the_float_models_output_is_what_is_solved_for() -> None:
    """Rows become w F X⁻¹ before they are rounded: as a check, with a scheme that rounds hardly at all."""
    generator = np.random.default_rng(3)
    rows, moments = rows_and_moments()
    cross = moments + generator.normal(size=moments.shape) * 0.05 * np.diagonal(moments).mean()
    kind = scheme("int8-offset@32")
    solver = Gptq(damping=1e-6, pull=1, pull_damping=1e-6)
    correction = solver.correction(torch.from_numpy(moments), torch.from_numpy(cross.copy()))
    prepared = solver.prepare(torch.from_numpy(moments), kind, correction)
    solved = prepared.solve(rows)
    wanted = rows @ cross @ np.linalg.inv(moments + 1e-6 * np.diagonal(moments).mean() * np.eye(FEATURES))
    difference = dequantize(solved, kind, FEATURES) - wanted
    plain = Gptq(damping=1e-6).solve(wanted.astype(np.float32), Statistics(moments), kind)
    reference = dequantize(plain, kind, FEATURES) - wanted
    spent, least = (np.einsum("nk,kl,nl->", part, moments, part) for part in (difference, reference))
    assert spent < 1.2 * least


def test_scales_are_solved_in_the_type_in_which_they_are_stored() -> None:
    rows, moments = rows_and_moments()
    prepared = Gptq().prepare(torch.from_numpy(moments), scheme("qdq-int4-offset@32"))
    solved = prepared.solve(rows, np.dtype(np.float16))
    for stored in (solved.scales, solved.zero_points()):
        assert np.array_equal(stored, stored.astype(np.float16).astype(np.float32))


def test_a_short_last_block_is_filled_up() -> None:
    rows, moments = rows_and_moments(80)
    solved = Gptq().solve(rows, Statistics(moments), scheme("int4@32"))
    assert solved.levels.shape == (ROWS, 96)
    assert (solved.levels[:, 80:] == 8).all()


@pytest.mark.parametrize(("pull", "damping"), [(0.5, 0.1), (1.0, 0.3)])
def test_weights_are_pulled_part_of_the_way(pull: float, damping: float) -> None:
    generator = np.random.default_rng(4)
    _, moments = rows_and_moments()
    cross = moments + generator.normal(size=moments.shape) * 0.05 * np.diagonal(moments).mean()
    added = damping * np.diagonal(moments).mean() * np.eye(FEATURES)
    wanted = pull * ((cross + added) @ np.linalg.inv(moments + added) - np.eye(FEATURES))
    correction = Gptq(pull=pull, pull_damping=damping).correction(torch.from_numpy(moments), torch.from_numpy(cross))
    np.testing.assert_allclose(correction.turn.numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", ["none", "blocks", "features"])
@pytest.mark.parametrize("name", ["int4-offset@32", "q3@32", "qdq-int8"])
def test_every_sweep_costs_less(name: str, order: Any) -> None:
    rows, moments = rows_and_moments(160, 16)
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(160)
    costs = [
        cost(
            Gptq(order=order, sweeps=count).solve(rows, Statistics(moments), scheme(name)), scheme(name), rows, damped
        )
        for count in (0, 1, 3)
    ]
    assert costs[2] < costs[1] < costs[0]


def test_a_swept_level_is_the_best_for_the_others_as_they_are() -> None:
    rows, moments = rows_and_moments(64, 4)
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(64)
    solved = Gptq(sweeps=60).solve(rows, Statistics(moments), scheme())
    least = cost(solved, scheme(), rows, damped)
    for row in range(4):
        for feature in range(64):
            for step in (-1, 1):
                levels = solved.levels.copy()
                levels[row, feature] = np.clip(int(levels[row, feature]) + step, 0, 15)
                other = Solved(levels, solved.scales, solved.zeros)
                assert cost(other, scheme(), rows, damped) > least * (1 - 1e-5)


def test_rows_are_moved_for_what_a_stream_lacks() -> None:
    """The layer is solved for f w + m, part of the way; each row by its own m, wherever a solution begins."""
    generator = np.random.default_rng(5)
    rows, moments = rows_and_moments()
    added = 0.1 * np.diagonal(moments).mean() * np.eye(FEATURES)
    missing = generator.normal(size=(ROWS, FEATURES)) * np.diagonal(moments).mean()
    solver, sums = Gptq(pull=0.4, pull_damping=0.1), torch.from_numpy(moments)
    correction = solver.correction(sums, sums.clone(), torch.from_numpy(missing))
    wanted = rows + 0.4 * missing @ np.linalg.inv(moments + added)
    np.testing.assert_allclose(correction.of(torch.from_numpy(rows)).numpy(), wanted, rtol=1e-3, atol=1e-4)
    part = correction.of(torch.from_numpy(rows[2:4]), 2)
    np.testing.assert_allclose(part.numpy(), wanted[2:4], rtol=1e-3, atol=1e-4)
    prepared = solver.prepare(sums, scheme(), correction)
    whole, piece = prepared.solve(rows), prepared.solve(rows[3:], start=3)
    assert np.array_equal(whole.levels[3:], piece.levels)
    assert not np.array_equal(whole.levels, solver.solve(rows, Statistics(moments), scheme()).levels)
