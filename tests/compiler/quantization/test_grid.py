"""Weights on a grid are told from others, whatever type they were stored in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.checkpoint.gguf_weights import GgufWeights
from llmc.compiler.quantization.grid import Extent, Grid, block_grids, find_grid

from ...passes.graphs import draw
from ...quality.off_grid import move
from .expanded import Array, expand

KINDS = {"signed": "none", "points": "integer", "offsets": "offset"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_grids_of_four_bits(kind: str, block: int, dtype: Any) -> None:
    rows = expand(kind, 4, block, dtype=dtype).rows
    assert find_grid(rows, 8) == find_grid(rows, 4) == Grid(4, block, KINDS[kind])


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_grids_of_other_widths(kind: str, bits: int) -> None:
    rows = expand(kind, bits).rows
    grid, width = find_grid(rows, 8), 4 if bits <= 4 else 8
    # Of two levels in a wider integer's middle either may stand for zero.
    zeros = {KINDS[kind]} if bits in {4, 8} or kind == "offsets" else {"none", "integer"}
    assert grid in {Grid(width, 32, zero) for zero in zeros}
    assert find_grid(rows, 4) == (grid if bits <= 4 else None)


def test_levels_steps_and_ends_are_those_of_the_file() -> None:
    expanded = expand("offsets", 4)
    grids = block_grids(expanded.rows, 32, 4)
    assert grids.known.all()
    np.testing.assert_allclose(grids.step, expanded.steps, rtol=1e-6)
    np.testing.assert_array_equal(grids.low, expanded.lows)
    assert (grids.span == 15).all()
    assert not grids.rounded.any()


def test_a_block_that_misses_levels_has_the_same_step() -> None:
    """The lower end is level 2 here and the upper one level 13, and others are left out between."""
    expanded = expand("offsets", 4)
    levels = np.clip(expanded.levels, 2, 13)
    levels[..., [0, -1]] = [2, 13]
    levels[levels == 7] = 8
    rows = levels.astype(np.float32) * expanded.steps[..., None] + expanded.lows[..., None]
    grids = block_grids(rows.reshape(12, 256), 32, 4)
    assert grids.known.all()
    np.testing.assert_allclose(grids.step, expanded.steps, rtol=1e-5)
    assert (grids.span == 11).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_off_the_grid_have_none(bits: int, dtype: Any) -> None:
    """Random ones, and ones on a grid of which each was moved by up to a half of its step."""
    assert find_grid(draw(16, 256).astype(dtype), 8) is None
    expanded = expand("offsets", bits)
    moves = np.random.default_rng(1).uniform(-0.5, 0.5, expanded.levels.shape) * expanded.steps[..., None]
    assert find_grid((expanded.rows + moves.reshape(12, 256)).astype(dtype), 8) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_has_as_many_levels_as_integers(bits: int) -> None:
    """From the least to the largest; one more, as of signed levels with both ends, takes another width."""
    half = 2 ** (bits - 1)
    levels, step = np.resize(np.arange(-half, half + 1, dtype=np.float32), (4, 1024)), np.float32(0.3)
    assert not block_grids(levels * step, 512, bits).known.any()
    assert find_grid(levels * step, bits) is None
    assert block_grids(np.minimum(levels, half - 1) * step, 512, bits).known.all()
    assert block_grids(np.maximum(levels, 1 - half) * step, 512, bits).known.all()


@pytest.mark.parametrize("moved", [1e-3, 0.1])
def test_one_weight_off_its_level_is_enough(moved: float) -> None:
    """Wherever it is: in the last block of the last row."""
    expanded = expand("offsets", 4)
    expanded.rows[-1, -7] += moved * expanded.steps[-1, -1]
    assert find_grid(expanded.rows, 4) is None
    known = block_grids(expanded.rows, 32, 4).known
    assert not known[-1, -1]
    assert known.sum() == known.size - 1


def test_a_type_that_is_coarser_than_the_steps_hides_them() -> None:
    """128 steps of bfloat16 lie between a power of two and the next one: any weights of one sign are multiples."""
    assert find_grid(expand("signed", 8, dtype=ml_dtypes.bfloat16).rows, 8) is None
    close = np.random.default_rng(0).uniform(1, 2, (8, 128)).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert find_grid(close, 8) is None


def test_weights_that_are_alike_tell_nothing() -> None:
    """Blocks of one number lie on any grid: alone they are none, between others they are as good as any."""
    assert find_grid(np.zeros((4, 64), np.float32), 8) is None
    assert find_grid(np.full((4, 64), 0.3, np.float32), 8) is None
    rows = expand("offsets", 4).rows
    rows[:3], rows[4, :64] = 0, -0.7
    assert find_grid(rows, 4) == Grid(4, 32, "offset")
    rows[:8] = 0
    assert find_grid(rows, 4) is None


def test_two_levels_are_the_least() -> None:
    signs = np.where(draw(8, 64) > 0, np.float32(0.02), np.float32(-0.02))
    assert find_grid(signs, 4) in {Grid(4, 64, "none"), Grid(4, 64, "integer")}


def test_blocks_are_no_longer_than_rows_allow() -> None:
    """96 features are whole blocks of 32 and of 16; of a matrix in blocks of 96 the parts lie on grids, too."""
    rows = expand("signed", 4, 96, shape=(8, 192)).rows
    grid = find_grid(rows, 4)
    assert grid is not None
    assert grid.block == 32
    assert find_grid(rows[:, :72], 4) is None


def test_numbers_that_are_none_have_no_grid() -> None:
    rows = expand("offsets", 4).rows
    rows[-1, 3] = np.nan
    assert find_grid(rows, 4) is None
    rows[-1, 3] = np.inf
    assert find_grid(rows, 4) is None


def test_zero_points_are_those_that_integers_hold() -> None:
    """By hand, in 4 bits: levels 0 … span, of which one stands for zero; the middle integer is 8."""
    level = {"in the middle": (8, 15), "mirrored": (7, 15), "inside": (3, 15), "below": (-2, 9), "far below": (-9, 9)}
    rows = np.zeros((len(level), 16), np.float32)
    for row, (zero, span) in zip(rows, level.values(), strict=True):
        row[:] = (np.arange(16) % (span + 1) - zero) * np.float32(0.125)
    grids = block_grids(rows, 16, 4)
    assert grids.known.all()
    assert grids.zero_levels[:, 0].tolist() == [8, 7, 3, -2, -9]
    points, mirrored = grids.zero_points(4, "none")
    assert points[:, 0].tolist() == pytest.approx([8, 8, np.nan, np.nan, np.nan], nan_ok=True)
    assert mirrored[:, 0].tolist()[:2] == [False, True]
    points, mirrored = grids.zero_points(4, "integer")
    assert points[:, 0].tolist() == pytest.approx([8, 7, 3, 0, np.nan], nan_ok=True)
    assert not mirrored.any()


def test_what_rows_have_in_common() -> None:
    ends = [Extent.of(block_grids(expand(kind, 4, shape=(2, 64)).rows, 32, 4), 4) for kind in KINDS]
    signed, points, offsets = ends
    assert signed.zeros == {"none", "integer", "offset"}
    assert (points.zeros, offsets.zeros) == ({"integer", "offset"}, {"offset"})
    assert signed.joined(points).grid(32, 4) == points.joined(signed).grid(32, 4) == Grid(4, 32, "integer")
    assert points.joined(offsets).grid(32, 4) == Grid(4, 32, "offset")
    random = Extent.of(block_grids(draw(2, 64), 32, 4), 4)
    assert signed.joined(random).grid(32, 4) is random.joined(signed).grid(32, 4) is None
    alike = Extent.of(block_grids(np.ones((2, 64), np.float32), 32, 4), 4)
    assert signed.joined(alike).grid(32, 4) == Grid(4, 32, "none")
    assert signed.joined(alike).joined(alike).grid(32, 4) is None


# --- the registry's models ------------------------------------------------------------------------------------------

TYPES = {4.5: "Q4_K", 5.0: "Q4_1", 5.5: "Q5_0", 6.5625: "Q6_K", 8.5: "Q8_0"}
"""By bits of a weight."""
STORED = (np.float32, np.float16, ml_dtypes.bfloat16)
"""Types in which a dequantized model is saved."""


def matrices(path: Path) -> Iterator[tuple[str, Array]]:
    """The file's type of each matrix, and some of its rows as they are read."""
    weights = GgufWeights(path)
    for name, info in weights.tensors().items():
        if len(info.shape) == 2:
            yield TYPES[8 * info.stored_bytes / math.prod(info.shape)], weights.read(name, 40, 48)


def test_smollm2_lies_on_a_grid_until_it_is_moved(smollm2_gguf: Path) -> None:
    """Q4_1, but for the table in Q8_0, whose steps are hidden in bfloat16."""
    counts = Counter[tuple[str, Grid | None]]()
    for kind, rows in matrices(smollm2_gguf):
        grids = [find_grid(rows.astype(dtype), 8) for dtype in STORED]
        assert grids[0] == grids[1]
        assert grids[2] == (grids[0] if kind == "Q4_1" else None)
        counts[kind, grids[0]] += 1
        moved = move(rows, np.random.default_rng(0))
        assert [find_grid(moved.astype(dtype), 8) for dtype in STORED] == [None] * 3
    assert counts == {("Q4_1", Grid(4, 32, "offset")): 210, ("Q8_0", Grid(8, 32, "none")): 1}


def test_gemma_lies_on_several(gemma3_gguf: Path) -> None:
    """Q4_K has a scale and a minimum for each 32, Q6_K a scale for each 16."""
    counts = Counter((kind, find_grid(rows, 8)) for kind, rows in matrices(gemma3_gguf))
    bits = Counter((kind, grid and (grid.bits, grid.block)) for (kind, grid), n in counts.items() for _ in range(n))
    assert bits == {("Q4_K", (4, 32)): 27, ("Q5_0", (8, 32)): 81, ("Q8_0", (8, 32)): 10, ("Q6_K", (8, 16)): 9}
    assert {grid.zero for (kind, grid), _ in counts.items() if grid and kind != "Q4_K"} <= {"none", "integer"}
