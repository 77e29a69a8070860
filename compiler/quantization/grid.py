"""Weights that lie on a quantization grid: values that a quantized file was expanded to.

In: rows of floats. Out: the :class:`Grid` on which they all lie, or None; the grid of each block, for whoever stores
them.

    value = low + step * level,    level 0 … span,    span < 2^bits,    for blocks of consecutive features

A block's step is looked for among the few that are possible: its least and its largest weight are levels, so the step
is their distance divided by a whole number; where zero is a level, too, it is often the largest magnitude divided by
the largest or the least integer of some type. A weight is on the grid if it misses a level by no more than the
rounding of the type in which it was stored, which the floats themselves tell. Where that rounding is no small part of
a step, anything would look like a grid, so nothing counts as one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from llmc.compiler.base.options import Zero
from llmc.compiler.quantization.solver import Array
from llmc.compiler.quantization.solvers.block_extremes import block_extremes

BLOCKS = (128, 64, 32, 16)
"""Sizes that are looked for, the one with the fewest scales first."""
WIDTHS = (4, 8)
"""Bits of integers that hold grids; a grid of five bits is one of eight."""
ROUNDING = ((16, 2.0**-7), (13, 2.0**-10), (0, 2.0**-18))
"""How many low bits of a row's float32 are zero; how far its weights may then be off, of a block's largest magnitude.

bfloat16 and float16 round to half a unit in the last place, and the ends of a block, whence steps come, are off as
much. float32 is what an expansion computes with; a few operations are within this.
"""
LARGEST_ERROR = 0.25
"""Of a step: beyond it a type's rounding hides the levels. Thirty random weights are within it once in 10^9."""
ZEROS: tuple[Zero, ...] = ("none", "integer", "offset")
"""What blocks have beside a step, the least first."""
_WHOLE = ZEROS[:2]
_FIRST_BLOCKS, _FIRST_WEIGHTS = 8, 8
_BATCH = 1 << 16
"""Weights times steps that are tried at a time."""


@dataclass(frozen=True)
class Grid:
    """Levels on which a weight lies.

    Attributes:
        bits: Of the integers that hold them, one of :data:`WIDTHS`.
        block: Consecutive features that share a step.
        zero: What a block needs beside a step: nothing, as zero is the middle integer; a whole zero point; an offset.
    """

    bits: int
    block: int
    zero: Zero


@dataclass(frozen=True, eq=False)
class BlockGrids:
    """The grids of blocks, all [n, blocks].

    Attributes:
        known: Whether there is one.
        step: float32; of a block whose weights are all alike their magnitude.
        low: Its least weight, float32: the level 0.
        span: Its largest level.
        error: By how much of a step weights may be off a level, as they are stored.
        rounded: [n] Whether a row's weights came rounded to a type of 16 bits.
    """

    known: Array
    step: Array
    low: Array
    span: Array
    error: Array
    rounded: Array

    @property
    def zero_levels(self) -> Array:
        """The level that stands for zero, counted from ``low``, perhaps outside of 0 … span; NaN where none does."""
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.where(self.step == 0, 0, -self.low / self.step)
        nearest = np.rint(level)
        return np.where(np.abs(level - nearest) <= self.error, nearest, np.nan)

    def zero_points(self, width: int, zero: Zero) -> tuple[Array, Array]:
        """Zero points [n, blocks] of integers of ``width`` bits, NaN where they cannot be; which steps are negative.

        Integers are level + zero point - zero level, or, where the step is negative, zero point + zero level - level.
        """
        level, top = self.zero_levels, 2**width - 1
        if zero == "integer":
            points = np.clip(level, 0, top)
            inside = (points >= level) & (points + self.span - level <= top)
            return np.where(inside, points, np.nan), np.zeros(level.shape, bool)
        half = 2 ** (width - 1)
        upright = (half >= level) & (half + self.span - level <= top)
        mirrored = ~upright & (half + level <= top) & (half + level - self.span >= 0)
        return np.where(upright | mirrored, half, np.nan), mirrored


@dataclass(frozen=True)
class Extent:
    """What is known of a weight after some of its rows.

    Attributes:
        on_grid: Whether all blocks have a grid.
        zeros: What all blocks could do with beside a step, in integers of the width that was looked for.
        blocks: How many there were …
        varied: … and of how many the weights were not all alike, which any grid would hold.
    """

    on_grid: bool
    zeros: frozenset[Zero]
    blocks: int
    varied: int

    @staticmethod
    def of(grids: BlockGrids, width: int) -> Extent:
        """Of the blocks of some rows."""
        held = {zero for zero in _WHOLE if not np.isnan(grids.zero_points(width, zero)[0]).any()}
        varied = int((grids.span > 0).sum())
        return Extent(bool(grids.known.all()), frozenset({*held, "offset"}), grids.known.size, varied)

    def joined(self, other: Extent) -> Extent:
        """Of the rows of both."""
        return Extent(
            self.on_grid and other.on_grid,
            self.zeros & other.zeros,
            self.blocks + other.blocks,
            self.varied + other.varied,
        )

    def grid(self, block: int, width: int) -> Grid | None:
        """The grid on which all lie; None where there is none, or where most blocks would lie on any."""
        if not self.on_grid or 2 * self.varied < self.blocks:
            return None
        return Grid(width, block, next(zero for zero in ZEROS if zero in self.zeros))


def find_grid(rows: Array, largest_bits: int) -> Grid | None:
    """The grid on which some rows lie; with the fewest bits, then with the largest blocks.

    Args:
        rows: [n, k] floats.
        largest_bits: Nothing is looked for that takes more.
    """
    for width in (width for width in WIDTHS if width <= largest_bits):
        for block in (size for size in BLOCKS if not rows.shape[1] % size):
            # Of weights on no grid a few blocks show that.
            first = rows[:1, : block * _FIRST_BLOCKS]
            if not block_grids(first, block, width).known.all():
                continue
            grid = Extent.of(block_grids(rows, block, width), width).grid(block, width)
            if grid is not None:
                return grid
    return None


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def block_grids(rows: Array, block: int, width: int) -> BlockGrids:
    """The grid of each block of [n, k] rows, in integers of ``width`` bits; k is a multiple of the block."""
    wide = np.ascontiguousarray(rows, np.float32)
    shape = (len(wide), wide.shape[1] // block)
    blocks = wide.reshape(-1, block)
    high, low = _extremes(blocks)
    peak, reach = np.maximum(np.abs(high), np.abs(low)), high - low
    roundings = _roundings(wide)
    slack = peak * np.repeat(roundings, shape[1])
    step, known = peak.copy(), reach == 0
    candidates, first, left = _candidates(width), 0, np.flatnonzero(~known)
    while len(left) and first < len(candidates):
        # Few blocks try many steps at a time, many blocks one.
        batch = candidates[first : first + max(1, _BATCH // (len(left) * block))]
        first += len(batch)
        steps = np.where([from_low for from_low, _ in batch], reach[left, None], peak[left, None])
        steps = steps / np.asarray([parts for _, parts in batch], np.float32)
        starts = np.where([from_low for from_low, _ in batch], low[left, None], np.float32(0))
        fits = _fit(blocks[left], starts, steps, slack[left, None] / steps)
        fits &= np.rint(reach[left, None] / steps) < 2**width
        chosen, found = fits.argmax(axis=1), fits.any(axis=1)
        step[left[found]] = steps[found, chosen[found]]
        known[left[found]] = True
        left = left[~found]
    _coarsen(blocks, low, step, known, slack)
    span = np.where(step == 0, 0, np.rint(reach / step))
    error = np.where(step == 0, 0, slack / step)
    known &= np.isfinite(step)
    rounded = roundings > ROUNDING[-1][1]
    known, step, low, span, error = (part.reshape(shape) for part in (known, step, low, span, error))
    return BlockGrids(known, step, low, span, error, rounded)


def _coarsen(blocks: Array, low: Array, step: Array, known: Array, slack: Array) -> None:
    """Make each step the largest one of which all levels are multiples, and zero's if it is one; in place.

    Steps are looked for from fine ones on, so of a block that uses few levels a fraction may be found, which no
    division of floats gives exactly. Most blocks show by their first weights that theirs is none.
    """
    held = np.flatnonzero(known & (step != 0))
    common = np.ones(0, np.int32)
    for count in (_FIRST_WEIGHTS, blocks.shape[1]):
        levels = np.rint((blocks[held, :count] - low[held, None]) / step[held, None]).astype(np.int32)
        common = np.gcd.reduce(levels, axis=1)
        zero = -low[held] / step[held]
        near = np.abs(zero - np.rint(zero)) <= slack[held] / step[held]
        common = np.where(near, np.gcd(common, np.rint(np.where(near, zero, 0)).astype(np.int32)), common)
        held, common = held[common != 1], common[common != 1]
    if len(held):
        reach = blocks[held].max(axis=1) - low[held]
        step[held] = reach / (np.rint(reach / step[held]) / common).astype(np.float32)


def _fit(blocks: Array, starts: Array, steps: Array, error: Array) -> Array:
    """Which of some steps [n, candidates] all weights of a block [n, block] are multiples of, from a start on."""
    levels = (blocks[:, None, :] - starts[..., None]) * (1 / steps)[..., None]
    levels -= np.rint(levels)
    most, least = _extremes(levels)
    fits: Array = (np.maximum(most, -least) <= error) & (error <= LARGEST_ERROR)
    return fits


def _extremes(blocks: Array) -> tuple[Array, Array]:
    """The largest and the smallest along the last axis."""
    most, least = block_extremes(blocks.reshape(1, -1, blocks.shape[-1]))
    return most.reshape(blocks.shape[:-1]), least.reshape(blocks.shape[:-1])


@functools.cache
def _candidates(width: int) -> tuple[tuple[bool, int], ...]:
    """What may be divided into how many steps, the distance of a block's ends or else its largest magnitude.

    The likely ones come first: peaks are the ends of integers as files have them, and of 4-bit floats, whose halves
    reach 12. Of the distances only those with all bits are there, since fewer steps are each several of theirs.
    """
    peaks = [8, 7] if width == 4 else [16, 15, 12, 32, 31, 127, 128]
    distances = range(2**width - 1, 2 ** (width - 1) - 1, -1)
    return (*((False, parts) for parts in peaks), *((True, parts) for parts in distances))


def _roundings(wide: Array) -> Array:
    """Of the narrowest type that holds each row [k] float32, [n] float32."""
    used = np.bitwise_or.reduce(wide.view(np.uint32), axis=1)
    conditions = [used & np.uint32((1 << zeros) - 1) == 0 for zeros, _ in ROUNDING]
    roundings: Array = np.select(conditions, [np.float32(rounding) for _, rounding in ROUNDING])
    return roundings
