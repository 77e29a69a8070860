"""The grid of one block of every row: which numbers its levels may stand for, and which grid errs least.

In: a scheme, the type in which scales are stored, blocks [features, rows], how much an error of each feature matters.
Out: :class:`Steps`, as they are stored, so that whoever rounds to them sees the numbers that an engine will see.

    value = level * scale + base,    base = -zero * scale   or   offset - 2^(bits-1) * scale

A grid is searched: the block's range is clipped by a few ratios, levels are chosen, scale and base are fitted to them
by weighted least squares, twice, and the grid of least weighted squared error is kept; the first is rounding's own,
so that weights that lie on a grid stay on it. Source of the fit: llama.cpp's ``make_qkx2_quants``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Solved
from llmc.compiler.quantization.solvers.blocks_library import GridKind, blocks_library
from llmc.compiler.quantization.solvers.packed import LARGEST_CODE

_TINY = float(np.finfo(np.float32).tiny)
_WIDEST, _NARROWEST = 1.05, {2: 0.4, 3: 0.55, 4: 0.7, 5: 0.78, 6: 0.84, 8: 0.92}
"""Ratios to which a range is clipped: the largest, and the smallest by bits; fits then move a grid off these."""
_REFITS = 2
_TYPES = {np.dtype(np.float16): torch.float16, np.dtype(ml_dtypes.bfloat16): torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Steps:
    """Grids of one block, a column for each row of the weight.

    Attributes:
        scale: [n], between levels.
        base: [n], what level 0 stands for.
        zero: [n], the zero point or the offset as it is stored; None where the scheme has none.
    """

    scale: Tensor
    base: Tensor
    zero: Tensor | None

    def levels(self, values: Tensor, low: int, top: int) -> Tensor:
        """The nearest levels, whole numbers as floats; ``values`` [..., n]. With a scale of 0 all are alike."""
        inverse = torch.where(self.scale == 0, 0, 1 / self.scale)
        return ((values - self.base) * inverse).round_().clamp_(low, top)

    def values(self, levels: Tensor) -> Tensor:
        """What levels stand for."""
        return torch.addcmul(self.base, levels, self.scale)


@dataclass(frozen=True)
class BlockGrid:
    """The grids that a scheme of integers has.

    Attributes:
        scheme: Of integers.
        dtype: NumPy's type of scales and offsets as they are stored.
        clippings: How many ratios of a block's range are tried; 1: rounding's own grid.
        row_scales: [n], of a packed scheme: a block's scale is one of these times a code.
        together: Ratios that are tried side by side. A processor is fastest with what its cache holds; a GPU does all
            in the time that it takes to ask for one.
    """

    scheme: Scheme
    dtype: np.dtype[np.generic]
    clippings: int = 12
    row_scales: Tensor | None = None
    together: int = 1

    @property
    def low(self) -> int:
        """The lowest level: in 8 bits the standard form leaves the least number out, as rounding does."""
        return 1 if self.scheme.form == "qdq" and self.scheme.bits == 8 and self.scheme.zero == "none" else 0

    @property
    def top(self) -> int:
        """The highest level."""
        return int(2**self.scheme.bits - 1)

    @property
    def unit(self) -> float:
        """Between two zero points, in levels."""
        return float(2 ** (self.scheme.bits - 8)) if self.scheme.zero == "fixed" else 1.0

    @property
    def most_zero(self) -> int:
        """The largest zero point, in units."""
        return self.top if self.unit == 1 else LARGEST_CODE

    @property
    def half(self) -> int:
        """The level that stands for zero, or for the offset, where there is no zero point."""
        return int(2 ** (self.scheme.bits - 1))

    def fit(self, block: Tensor, importance: Tensor) -> Steps:
        """The grid of least weighted squared error.

        Args:
            block: [features, n] float32.
            importance: [features, 1] or [features, n], not negative, what a squared error of each feature costs.
        """
        compiled = None if block.is_cuda or importance.shape[1] > 1 else blocks_library()
        if compiled is not None:
            return Steps(*compiled.fit(self._kind, block, importance[:, 0], self.row_scales))
        best, least = None, None
        for grid, error in self._tried(block, importance):
            if best is None or least is None:
                best, least = grid, error
                continue
            better = error < least
            best = _choose(better, grid, best)
            least = torch.where(better, error, least)
        assert best is not None
        return best

    def _tried(self, block: Tensor, importance: Tensor) -> Iterator[tuple[Steps, Tensor]]:
        """Grids and their errors [n]: rounding's own, then those that are fitted."""
        starts = list(self._starts(block))
        own = self.stored(*starts[0])
        yield own, self._error(block, importance, own)
        for first in range(0, len(starts) if self.clippings > 1 else 0, self.together):
            yield from self._fitted(block, importance, starts[first : first + self.together])

    def _fitted(
        self, block: Tensor, importance: Tensor, starts: Sequence[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Steps, Tensor]]:
        """Grids that are fitted from several beginnings, side by side as columns, and their errors [n]."""
        count = len(starts)
        rows = None if self.row_scales is None else self.row_scales.expand(block.shape[1]).repeat(count)
        wide, columns = replace(self, row_scales=rows), block.repeat(1, count) if count > 1 else block
        costs = importance.repeat(1, count) if importance.shape[1] > 1 else importance
        steps = wide.stored(torch.cat([scale for scale, _ in starts]), torch.cat([base for _, base in starts]))
        for _ in range(_REFITS):
            steps = wide._refit(columns, costs, steps)
        errors = wide._error(columns, costs, steps)
        zeros = [None] * count if steps.zero is None else steps.zero.chunk(count)
        grids = zip(steps.scale.chunk(count), steps.base.chunk(count), zeros, strict=True)
        for (scale, base, zero), error in zip(grids, errors.chunk(count), strict=True):
            yield Steps(scale, base, zero), error

    def _error(self, block: Tensor, importance: Tensor, grid: Steps) -> Tensor:
        """[n], weighted squared errors."""
        return _sums(importance, (block - grid.values(grid.levels(block, self.low, self.top))).square_())

    def solved(self, levels: Tensor, steps: Steps, shape: tuple[int, int]) -> Solved:
        """Numbers as solvers return them: levels [n, features] uint8, the grids of its blocks as ``shape``."""
        scale, zero, rows = steps.scale.reshape(shape), steps.zero, None
        if self.row_scales is not None:
            # Of the grids one by one or of the rows, as rows were solved or all their blocks at once.
            row_scales = self.row_scales.reshape(shape[0], -1)[:, :1]
            scale = _divided(scale, row_scales).round().to(torch.uint8)
            rows = row_scales[:, 0].cpu().numpy()
        if zero is not None and self.scheme.zero != "offset":
            zero = (zero / self.unit).round().to(torch.uint8)
        zeros = None if zero is None else zero.reshape(shape).cpu().numpy()
        numbers = np.ascontiguousarray(levels.cpu().numpy())
        return Solved(numbers, scale.cpu().numpy(), zeros, row_scales=rows)

    def stored(self, scale: Tensor, base: Tensor) -> Steps:
        """The grid nearest to one that scheme and type can hold."""
        if self.row_scales is not None:
            # A block that is not all zeros keeps a step, however small beside its row's.
            code = _divided(scale, self.row_scales)
            scale = torch.where(code > 0, code.round().clamp(1, LARGEST_CODE), 0) * self.row_scales
        else:
            scale = self._rounded(scale)
        if self.scheme.form == "qdq":  # which takes no scale of 0
            scale = torch.where(scale < _TINY, 1, scale)
        if self.scheme.zero == "offset":
            zero = self._rounded(base + self.half * scale)
            return Steps(scale, zero - self.half * scale, zero)
        if self.scheme.zero != "none":
            # In the units in which zero points are counted.
            point = (_divided(-base, scale) / self.unit).round_().clamp_(0, self.most_zero) * self.unit
            return Steps(scale, -point * scale, point)
        return Steps(scale, -self.half * scale, None)

    def _rounded(self, numbers: Tensor) -> Tensor:
        kind = _TYPES.get(self.dtype)
        rounded = numbers if kind is None else numbers.to(kind).float()
        return torch.where(rounded.abs() < _TINY, 0, rounded)

    def _starts(self, block: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Grids over the clipped range of each row."""
        high, low = block.amax(0), block.amin(0)
        if self.scheme.zero not in {"none", "offset"}:
            high, low = high.clamp(min=0), low.clamp(max=0)
        for part, margin in self._parts():
            if self.scheme.zero != "none":
                yield (high - low) * part, low + (high - low) * margin
            elif self.scheme.form != "nbits":
                scale = torch.maximum(high / (self.half - 1), low / (self.low - self.half)) * part
                yield scale, -self.half * scale
            else:
                scale = torch.where(high > -low, high, low) * part
                yield scale, -self.half * scale

    @functools.cached_property
    def _kind(self) -> GridKind:
        ends = (self.low, self.top, self.half, self.unit, self.most_zero)
        return GridKind(self.scheme, self.dtype, *ends, tuple(self._parts()))

    def _parts(self) -> Iterator[tuple[float, float]]:
        """What of a block's range is a step, and what of it lies below the lowest level, for each ratio."""
        narrowest = _NARROWEST[self.scheme.bits]
        for index in range(self.clippings):
            ratio = _WIDEST - (_WIDEST - narrowest) * (index - 1) / max(1, self.clippings - 2) if index else 1.0
            if self.scheme.zero != "none":
                yield ratio / self.top, (1 - ratio) / 2
            else:
                yield -ratio / self.half if self.scheme.form == "nbits" else ratio, 0.0

    def _refit(self, block: Tensor, importance: Tensor, steps: Steps) -> Steps:
        """Scale and base by weighted least squares for the levels that ``steps`` gives."""
        levels = steps.levels(block, self.low, self.top)
        if self.scheme.zero == "none":
            scale = self._slope(block, importance, levels - self.half, steps.scale)
            return self.stored(scale, -self.half * scale)
        weight, centred = importance.sum(0), levels - self.half
        by_level, squares = _sums(importance, centred), _sums(importance, centred.square())
        products, sums = _sums(importance, centred * block), _sums(importance, block)
        scatter = weight * squares - by_level.square()
        slope = (weight * products - by_level * sums) / torch.where(scatter > 0, scatter, 1)
        fits = (scatter > 0) & (slope > 0)
        slope = torch.where(fits, slope, steps.scale)
        offset = (sums - slope * by_level) / torch.where(weight > 0, weight, 1)
        base = torch.where(fits, offset - self.half * slope, steps.base)
        fitted = self.stored(slope, base)
        if self.scheme.zero == "offset":
            return fitted
        # The zero point was rounded: the scale that suits the rounded one.
        assert fitted.zero is not None
        again = self._slope(block, importance, levels - fitted.zero, fitted.scale)
        return self.stored(again, -fitted.zero * again)

    def _slope(self, block: Tensor, importance: Tensor, points: Tensor, otherwise: Tensor) -> Tensor:
        """The scale by which ``points`` are nearest to the block."""
        squares = _sums(importance, points.square())
        slope = _sums(importance, points * block) / torch.where(squares > 0, squares, 1)
        signed = self.scheme.form == "nbits" and self.scheme.zero == "none"
        return torch.where((squares > 0) & ((slope > 0) | signed), slope, otherwise)


def range_scales(rows: Tensor, scheme: Scheme) -> Tensor:
    """[n], for packed rows [n, features]: with these a code of 255 is the widest step that rounding takes."""
    size = scheme.block or rows.shape[1]
    blocks = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size)).reshape(len(rows), -1, size)
    high, low, half = blocks.amax(2).clamp(min=0), blocks.amin(2).clamp(max=0), 2 ** (scheme.bits - 1)
    both = (high - low) / (2 * half - 1)
    steps = both if scheme.zero == "fixed" else torch.maximum(high / (half - 1), -low / half)
    scales = steps.amax(1) / LARGEST_CODE
    return torch.where(scales < _TINY, 0, scales)


def _divided(numbers: Tensor, by: Tensor) -> Tensor:
    """0 where it is a division by nothing."""
    return torch.where(by == 0, 0, numbers / torch.where(by == 0, 1, by))


def _sums(importance: Tensor, numbers: Tensor) -> Tensor:
    """[n], weighted sums over a block's features."""
    return importance[:, 0] @ numbers if importance.shape[1] == 1 else (importance * numbers).sum(0)


def _choose(better: Tensor, new: Steps, old: Steps) -> Steps:
    zero = None if new.zero is None or old.zero is None else torch.where(better, new.zero, old.zero)
    scale, base = torch.where(better, new.scale, old.scale), torch.where(better, new.base, old.base)
    return Steps(scale, base, zero)


def joined(steps: Sequence[Steps]) -> Steps:
    """Grids of blocks that lie one after the other in each row: those of row 0, of row 1, …"""
    zeros = [item.zero for item in steps if item.zero is not None]
    scale, base = (torch.stack([getattr(item, name) for item in steps], 1).reshape(-1) for name in ("scale", "base"))
    return Steps(scale, base, torch.stack(zeros, 1).reshape(-1) if zeros else None)
