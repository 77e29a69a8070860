"""Grids of blocks: what they hold, and that the search finds what it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solvers.block_grid import BlockGrid, Steps, range_scales

pytestmark = pytest.mark.usefixtures("either_arithmetic")
FLOAT32 = np.dtype(np.float32)
INTEGERS = [
    "int4@32", "int4-zero@32", "int4-offset@32", "int8@32", "qdq-int4@32", "qdq-int8", "qdq-uint4-zero@32",
    "q2@32", "q3@32", "q4@32", "q5@32", "q6@32", "q8@32", "q4-symmetric@32",
]  # fmt: skip


def scheme(name: str) -> Scheme:
    found = scheme_of(name)
    assert found is not None
    return found


def block(rows: int = 20, features: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(features, rows, generator=torch.Generator().manual_seed(seed))


def grid_of(name: str, numbers: torch.Tensor, clippings: int = 12) -> BlockGrid:
    kind = scheme(name)
    packed = range_scales(numbers.T, kind) if kind.form == "packed" else None
    return BlockGrid(kind, FLOAT32, clippings, packed)


def error(grid: BlockGrid, steps: Steps, numbers: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    off = numbers - steps.values(steps.levels(numbers, grid.low, grid.top))
    return (importance * off.square()).sum(0)


@pytest.mark.parametrize("name", INTEGERS)
def test_a_search_errs_at_most_as_much_as_rounding_in_every_block(name: str) -> None:
    numbers, importance = block(), torch.rand(32, 1, generator=torch.Generator().manual_seed(1)).exp()
    searched, rounded = grid_of(name, numbers), grid_of(name, numbers, clippings=1)
    errors = error(searched, searched.fit(numbers, importance), numbers, importance)
    before = error(rounded, rounded.fit(numbers, importance), numbers, importance)
    assert (errors <= before).all()
    assert errors.sum() < (1 if grid_of(name, numbers).scheme.bits == 8 else 0.97) * before.sum()


@pytest.mark.parametrize("together", [5, 12, 20])
@pytest.mark.parametrize("name", INTEGERS)
def test_the_same_grids_are_found_however_many_are_tried_side_by_side(name: str, together: int) -> None:
    numbers, importance = block(), torch.rand(32, 20, generator=torch.Generator().manual_seed(1)).exp()
    for costs in (importance, importance[:, :1]):
        one, several = (
            replace(grid_of(name, numbers), together=count).fit(numbers, costs) for count in (1, together)
        )
        torch.testing.assert_close(several.scale, one.scale, rtol=1e-5, atol=0)
        torch.testing.assert_close(several.base, one.base, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["int4@32", "int4-zero@32", "int4-offset@32", "q4@32", "qdq-int4@32"])
def test_importance_decides(name: str) -> None:
    numbers, importance = block(), torch.ones(32, 1)
    importance[:4] = 1e4
    grid = grid_of(name, numbers)
    weighted, even = grid.fit(numbers, importance), grid.fit(numbers, torch.ones(32, 1))
    first = torch.zeros(32, 1)
    first[:4] = 1
    assert error(grid, weighted, numbers, first).sum() < 0.6 * error(grid, even, numbers, first).sum()


@pytest.mark.parametrize(
    ("name", "half", "offset"), [("int4@32", 8, 0.0), ("int4-zero@32", 3, 0.0), ("int4-offset@32", 8, 0.37)]
)
def test_weights_on_a_grid_stay_on_it(name: str, half: int, offset: float) -> None:
    levels = torch.randint(0, 16, (32, 20), generator=torch.Generator().manual_seed(2)).float()
    levels[0], levels[1] = 0, 15
    numbers = (levels - half) * 0.03 + offset
    grid = grid_of(name, numbers)
    steps = grid.fit(numbers, torch.ones(32, 1))
    torch.testing.assert_close(steps.values(steps.levels(numbers, 0, 15)), numbers, rtol=0, atol=1e-6)


def test_packed_grids_are_codes() -> None:
    numbers = block()
    grid = grid_of("q3@32", numbers)
    assert grid.row_scales is not None
    steps = grid.fit(numbers, torch.ones(32, 1))
    codes = steps.scale / grid.row_scales
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert codes.max() <= 255
    assert steps.zero is not None
    points = steps.zero * 2**5
    assert torch.equal(points, points.round())
    assert (points.min() >= 0, points.max() <= 255) == (True, True)
    torch.testing.assert_close(steps.base, -steps.zero * steps.scale)


def test_a_block_of_zeros_stays_zero() -> None:
    for name in INTEGERS:
        numbers = torch.zeros(32, 3)
        grid = grid_of(name, numbers)
        steps = grid.fit(numbers, torch.ones(32, 1))
        assert torch.equal(steps.values(steps.levels(numbers, grid.low, grid.top)), numbers), name


def test_a_standard_scale_is_never_zero() -> None:
    steps = BlockGrid(scheme("qdq-int4@32"), FLOAT32).fit(torch.zeros(32, 2), torch.ones(32, 1))
    assert torch.equal(steps.scale, torch.ones(2))


def test_one_importance_for_each_block_is_taken_as_such() -> None:
    numbers = block()
    importance = torch.rand(32, 20, generator=torch.Generator().manual_seed(4))
    grid = grid_of("int4-offset@32", numbers)
    together = grid.fit(numbers, importance)
    for row in range(20):
        alone = grid.fit(numbers[:, row : row + 1], importance[:, row : row + 1])
        torch.testing.assert_close(together.scale[row : row + 1], alone.scale, rtol=1e-5, atol=0)
