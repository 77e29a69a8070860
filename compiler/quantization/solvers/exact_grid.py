"""The numbers of weights that lie on a grid: those of the grid, so that nothing is lost.

In: rows whose :class:`~llmc.compiler.quantization.grid.Grid` is known, a scheme of the form ``nbits`` that holds it.
Out: levels, steps and zeros of each block. Where floats came rounded (float16, bfloat16), step and offset are those
that err least over the block, and what is stored is nearer to the grid than the floats were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.quantization.grid import BlockGrids, block_grids
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, Statistics


@dataclass(frozen=True)
class ExactGrid:
    """The solver of weights that were seen to lie on a grid in blocks of the scheme's size."""

    def needs_layer(self, scheme: Scheme) -> bool:
        """Never."""
        return False

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """The grid's own numbers; see :class:`~llmc.compiler.quantization.solver.Solver`.

        Raises:
            CheckpointError: the weights are no longer those that were seen.
        """
        assert scheme.block is not None
        assert scheme.form == "nbits"
        grids = block_grids(rows, scheme.block, scheme.bits)
        blocks = np.asarray(rows, np.float32).reshape(*grids.step.shape, scheme.block)
        if scheme.zero == "offset":
            numbers, steps, zeros = _with_offsets(blocks, grids, 2 ** (scheme.bits - 1))
        else:
            numbers, steps, zeros = _with_zero_points(blocks, grids, scheme)
        if not grids.known.all() or np.isnan(zeros).any():
            raise CheckpointError("weights that lay on a quantization grid do no longer; compile the model again")
        stored = {"none": None, "integer": np.uint8, "offset": np.float32}[scheme.zero]
        return Solved(
            numbers.astype(np.uint8).reshape(len(rows), -1),
            steps.astype(np.float32),
            None if stored is None else zeros.astype(stored),
        )


def _with_offsets(blocks: Array, grids: BlockGrids, half: int) -> tuple[Array, Array, Array]:
    levels, steps, low = _levels(blocks, grids), grids.step, grids.low
    if grids.rounded.any():
        # Least squares: the slope of the weights over their levels, and the offset that leaves no mean error.
        mean_level, mean = (part.mean(axis=2, dtype=np.float64) for part in (levels, blocks))
        fitted = _slopes(levels - mean_level[..., None], blocks, grids)
        low = np.where(grids.rounded[:, None], mean - fitted * mean_level, low)
        steps = fitted
    steps = np.where(grids.span == 0, 0, steps)
    return levels, steps, low + half * steps


def _with_zero_points(blocks: Array, grids: BlockGrids, scheme: Scheme) -> tuple[Array, Array, Array]:
    assert scheme.zero == "none" or scheme.zero == "integer"
    points, mirrored = grids.zero_points(scheme.bits, scheme.zero)
    signs = np.where(mirrored, np.float32(-1), np.float32(1))
    multiples = _levels(blocks, grids) - grids.zero_levels[..., None]
    steps = _slopes(multiples, blocks, grids) if grids.rounded.any() else grids.step
    steps = _exact(multiples.astype(np.float32), blocks, steps.astype(np.float32), grids.rounded)
    return points[..., None] + signs[..., None] * multiples, steps * signs, points


def _exact(multiples: Array, blocks: Array, steps: Array, rounded: Array) -> Array:
    """Steps [n, blocks], or floats beside them, with which multiples are the weights to the bit, if there are such.

    A scale in float32 is in the weights only as far as each product was rounded; rows that came rounded to a type of
    16 bits, ``rounded`` [n], are no such products.
    """
    found = steps.copy()
    left = np.flatnonzero(~(_hold(multiples, blocks, steps) | rounded[:, None]).reshape(-1))
    flat, wanted = (part.reshape(-1, part.shape[-1]) for part in (multiples, blocks))
    unit = np.spacing(steps.reshape(-1))
    for away in (1, -1, 2, -2, 3, -3):
        near = steps.reshape(-1)[left] + away * unit[left]
        hits = _hold(flat[left], wanted[left], near)
        found.reshape(-1)[left[hits]] = near[hits]
        left = left[~hits]
    return found


def _hold(multiples: Array, blocks: Array, steps: Array) -> Array:
    """Whether multiples [..., block] of steps [...] are the weights."""
    equal: Array = (multiples * steps[..., None] == blocks).all(axis=-1)
    return equal


def _slopes(multiples: Array, blocks: Array, grids: BlockGrids) -> Array:
    """Steps [n, blocks] that err least, of rows that came rounded; else those that are known."""
    squares = (multiples * multiples).sum(axis=2, dtype=np.float64)
    products = (multiples * blocks).sum(axis=2, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(grids.rounded[:, None] & (squares > 0), products / squares, grids.step)


def _levels(blocks: Array, grids: BlockGrids) -> Array:
    """[n, blocks, block] float32, counted from each block's least weight."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(grids.span == 0, 0, 1 / grids.step).astype(np.float32)
    levels = (blocks - grids.low[..., None]) * inverse[..., None]
    rounded: Array = np.rint(levels, out=levels)
    return rounded
