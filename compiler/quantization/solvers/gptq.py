"""GPTQ: features are rounded one after the other, each makes up for the errors of those before it.

In: a weight's rows w [n, k], the second moments H of its inputs. Out: numbers q with little ``(w - q) H (w - q)ᵀ``.

With H = R Rᵀ, R upper triangular, that error is the sum over features j of ((w - q) R)_j², of which the term of j
depends on the errors of features up to j alone. So each feature in turn is rounded to

    w_j + Σ_{i<j} (w_i - q_i) R_ij / R_jj

which is GPTQ's rule (its factor of H⁻¹ is R⁻¹, up to the diagonal) without an inverse, and as a product of what is
known with a panel of R. A block's grid is searched when it is reached, on weights that would make up for all errors
until then if no further one were rounded: e R_<J R_JJ⁻¹ further on for the features J of the block. Sources: Frantar
et al. 2022 (GPTQ); Chen et al. 2025 (it is Babai's nearest plane).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llmc.compiler.base.errors import LlmcError
from llmc.compiler.quantization.products import plain, product, right_hand
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, Statistics
from llmc.compiler.quantization.solvers.block_grid import BlockGrid, Steps, joined, range_scales
from llmc.compiler.quantization.solvers.blocks_library import blocks_library

Order = Literal["none", "blocks", "features"]
Each = Callable[[Callable[[Tensor], None], Iterable[Tensor]], Iterable[None]]
"""As :func:`map` is, or that of threads which work side by side."""
PANEL = 64
"""Features whose errors go into later ones one by one; further on they do as one product."""
ROOM = 1.25
"""What weights that make up for others' errors may be larger by; a packed row's scale leaves so much room."""
TOGETHER = 1024
"""Rows that a thread divides by moments at once, whatever the number of threads."""
WIDE = 4096
"""Features beyond which second moments are summed and factored in float32, for the memory's sake."""


@dataclass(frozen=True)
class Gptq:
    """The solver.

    Attributes:
        damping: Added to the diagonal of H, in units of its mean.
        order: Features as they lie; whole blocks, and the features in each, by falling second moment; or features by
            falling second moment wherever their block lies, whose grids are then chosen beforehand.
        clippings: Ratios of a block's range that are tried for its grid.
        pull: How far weights are moved, before they are rounded, to those with which the layer would make of its
            inputs what the float model makes of its own: 0 to 1. All the way would fit the text more than the model.
        pull_damping: Added to the moments for that, as ``damping``.
        sweeps: How often, once all features are rounded, each one's level is chosen anew for what the others are.
    """

    damping: float = 0.01
    order: Order = "none"
    clippings: int = 13
    pull: float = 0.5
    pull_damping: float = 0.1
    sweeps: int = 0

    def needs_layer(self, scheme: Scheme) -> bool:
        """Rows do not depend on each other, but the moments are factored once for all."""
        return True

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """See :class:`~llmc.compiler.quantization.solver.Solver`; what was seen must hold second moments."""
        if seen is None or seen.second_moments is None:
            raise LlmcError("GPTQ needs the second moments of a layer's inputs")
        moments = torch.from_numpy(np.asarray(seen.second_moments, np.float64))
        return self.prepare(moments, scheme).solve(rows)

    def correction(
        self, moments: Tensor, cross: Tensor, missing: Tensor | None = None, each: Each = map
    ) -> Correction:
        """How weights are moved before they are rounded, for all layers that read the same input.

        Args:
            moments: [k, k], of the inputs x as the layer will see them.
            cross: [k, k], of the inputs f of the model in floats: sum of fᵀx. A layer w is then solved for something
                between x w and the nearest to f w that x can give, w cross moments⁻¹. It is overwritten …
            missing: [n, k], of what the stream to which the one layer's n outputs are added lacks, m: sum of mᵀx. The
                layer is then solved for f w + m in place of f w; None: for f w. … as it is.
            each: Does something with each of some rows, in any order.
        """
        return _correction(moments, cross, missing, self.pull, self.pull_damping, each)

    def prepare(self, moments: Tensor, scheme: Scheme, correction: Correction | None = None) -> FactoredMoments:
        """Factor second moments, once for all layers that read the same input.

        Args:
            moments: [k, k], of the inputs x as the layer will see them.
            scheme: Of integers.
            correction: Of :meth:`correction`; None: weights are solved for as they are.
        """
        blocks = _blocks(len(moments), scheme.block or len(moments))
        # A view would keep the moments.
        diagonal = moments.diagonal().clone()
        if self.order != "none":
            blocks = [block[diagonal[block].cpu().argsort(descending=True, stable=True)] for block in blocks]
        if self.order == "blocks":
            sums = torch.stack([diagonal[block].sum() for block in blocks])
            places = sums.argsort(descending=True, stable=True).tolist()
        else:
            places = list(range(len(blocks)))
        order = torch.cat([blocks[place] for place in places]).to(moments.device)
        if self.order == "features":
            order = diagonal.argsort(descending=True, stable=True)
        factor = _factor(moments, order, self.damping)
        whole = factor @ factor.T if self.sweeps else None
        return FactoredMoments(self, scheme, blocks, places, order, factor, diagonal, correction, whole)


@dataclass(frozen=True, eq=False)
class Correction:
    """How weights are moved before they are rounded.

    Attributes:
        turned: [k, k] float32, as :func:`~llmc.compiler.quantization.products.product` takes it: rows times its
            transpose are added to them …
        added: … and these, [n, k] float32, one for each row of the layer; None: nothing more is.
    """

    turned: Tensor
    added: Tensor | None = None

    @property
    def turn(self) -> Tensor:
        """[k, k], what rows are multiplied by; made when it is asked for."""
        return plain(self.turned).T

    def of(self, rows: Tensor, start: int = 0) -> Tensor:
        """Rows [m, k] float32 of the layer, from ``start`` on, as they are to be; a new tensor."""
        moved = product(rows, self.turned).add_(rows)
        return moved if self.added is None else moved.add_(self.added[start : start + len(rows)])


@dataclass(frozen=True, eq=False)
class FactoredMoments:
    """Second moments of a layer's inputs, ready to solve rows.

    Attributes:
        solver: Its settings.
        scheme: Of integers.
        blocks: Features of each block.
        places: Blocks in the order in which they are solved.
        order: [k], features in that order.
        factor: [k, k] float32, upper triangular in that order.
        diagonal: [k] of the moments.
        correction: How rows are moved before anything is rounded; None: they are not.
        whole: [k, k] float32, the moments as they were factored; None: nobody asks.
    """

    solver: Gptq
    scheme: Scheme
    blocks: list[Tensor]
    places: list[int]
    order: Tensor
    factor: Tensor
    diagonal: Tensor
    correction: Correction | None = None
    whole: Tensor | None = None

    def solve(self, rows: Array, dtype: np.dtype[np.generic] | None = None, start: int = 0) -> Solved:
        """Numbers of rows, each of which is for itself.

        Args:
            rows: [n, k], those of the layer from ``start`` on.
            dtype: In which scales are stored; None: in theirs.
            start: Counts where a correction is not the same for all rows.
        """
        weight = torch.from_numpy(np.array(rows, np.float32, order="C")).to(self.factor.device)
        if self.correction is not None:
            weight = self.correction.of(weight, start)
        packed = range_scales(weight, self.scheme) * ROOM if self.scheme.form == "packed" else None
        clippings = self.solver.clippings
        grid = BlockGrid(self.scheme, dtype or rows.dtype, clippings, packed, clippings if weight.is_cuda else 1)
        work = _Work(self, grid, weight.T[self.order].contiguous())
        steps = work.static_grids(weight) if self.solver.order == "features" else work.grids_as_reached()
        for _ in range(self.solver.sweeps):
            assert self.whole is not None
            work.sweep(self.whole)
        return self._solved(work, steps)

    def _solved(self, work: _Work, steps: list[Steps]) -> Solved:
        count, features = len(self.blocks), len(self.order)
        height = work.levels.shape[1]
        levels = work.levels.new_full((count * (self.scheme.block or features), height), work.grid.half)
        levels[self.order] = work.levels
        return work.grid.solved(levels.T.to(torch.uint8), joined(steps), (height, count))


class _Work:
    """One solution in the making: features go first, so that a feature's rows lie side by side."""

    def __init__(self, moments: FactoredMoments, grid: BlockGrid, weight: Tensor) -> None:
        self.moments, self.grid, self.weight = moments, grid, weight
        self.errors, self.levels = torch.zeros_like(weight), torch.empty_like(weight)
        self.grids: list[Steps] = []
        """Of the features that are rounded."""

    def grids_as_reached(self) -> list[Steps]:
        """Solve block after block, each with a grid for its weights as they then are."""
        steps: dict[int, Steps] = {}
        start = 0
        for place in self.moments.places:
            stop = start + len(self.moments.blocks[place])
            own = self.moments.factor[start:stop, start:stop]
            pushed = self.moments.factor[:start, start:stop].T @ self.errors[:start] if start else None
            # Between what an error costs alone, and what is left of that once later features make up for it.
            importance = own.diagonal() * self.moments.diagonal[self.moments.order[start:stop]].float().sqrt()
            steps[place] = self.grid.fit(self._unrounded(start, stop, own, pushed), importance[:, None])
            target = self.weight[start:stop]
            if pushed is not None:
                target = torch.addcdiv(target, pushed, own.diagonal()[:, None])
            for low in range(start, stop, PANEL):
                high = min(low + PANEL, stop)
                self._round(low, high, self._target(target[low - start : high - start], start, low), [steps[place]])
            start = stop
        return [steps[place] for place in range(len(steps))]

    def static_grids(self, weight: Tensor) -> list[Steps]:
        """Grids for the weights [n, k] as they are; then solve feature after feature, each on its block's."""
        diagonal = self.moments.diagonal.float().to(weight.device)
        steps = [self.grid.fit(weight.T[block], diagonal[block, None]) for block in self.moments.blocks]
        owner = torch.empty(len(self.weight), dtype=torch.long)
        for place, block in enumerate(self.moments.blocks):
            owner[block] = place
        owners = owner[self.moments.order.cpu()].tolist()
        for low in range(0, len(self.weight), PANEL):
            high = min(low + PANEL, len(self.weight))
            target = self._target(self.weight[low:high], 0, low)
            self._round(low, high, target, [steps[place] for place in owners[low:high]])
        return steps

    def _unrounded(self, start: int, stop: int, own: Tensor, pushed: Tensor | None) -> Tensor:
        """[stop - start, n], what a block's weights would be if only what lies before ``start`` were rounded."""
        if pushed is None:
            return self.weight[start:stop]
        return self.weight[start:stop] + torch.linalg.solve_triangular(own.T, pushed, upper=False)

    def _target(self, target: Tensor, since: int, start: int) -> Tensor:
        """``target`` [features, n] from ``start`` on, for which errors before ``since`` are known; then for all."""
        if start == since:
            return target
        return torch.addmm(target, self._shares(since, start, start, start + len(target)).T, self.errors[since:start])

    def _shares(self, first: int, last: int, start: int, stop: int) -> Tensor:
        """[last - first, stop - start], what errors of the former features add to what the latter are rounded to."""
        factor = self.moments.factor
        return factor[first:last, start:stop] / factor.diagonal()[start:stop]

    def _round(self, low: int, high: int, target: Tensor, steps: list[Steps]) -> None:
        """Features ``low`` to ``high`` one after the other; ``steps``: one grid for all, or one each."""
        shares, errors = self._shares(low, high, low, high), self.errors[low:high]
        self.grids += steps if len(steps) > 1 else steps * (high - low)
        if (compiled := None if target.is_cuda else blocks_library()) is not None:
            grids = steps[0].scale, steps[0].base
            if len(steps) > 1:
                grids = torch.stack([step.scale for step in steps]), torch.stack([step.base for step in steps])
            ends, out = (self.grid.low, self.grid.top), (self.levels[low:high], errors)
            compiled.round_panel(target, self.weight[low:high], shares, grids, ends, out)
            return
        for index in range(high - low):
            wanted, grid = target[index], steps[index if len(steps) > 1 else 0]
            if index:
                wanted = torch.addmv(wanted, errors[:index].T, shares[:index, index])
            levels = grid.levels(wanted, self.grid.low, self.grid.top)
            self.levels[low + index] = levels
            torch.sub(self.weight[low + index], grid.values(levels), out=errors[index])

    def sweep(self, whole: Tensor) -> None:
        """Each feature's level again, the nearest to where the error is least for the others as they are."""
        for low in range(0, len(self.weight), PANEL):
            high = min(low + PANEL, len(self.weight))
            own, errors = whole[low:high, low:high], self.errors[low:high]
            slopes = whole[low:high] @ self.errors
            for index, grid in enumerate(self.grids[low:high]):
                wanted = self.weight[low + index] - errors[index] + slopes[index] / own[index, index]
                levels = grid.levels(wanted, self.grid.low, self.grid.top)
                error = self.weight[low + index] - grid.values(levels)
                # What this one's change does to the slopes of the features behind it.
                slopes[index + 1 :].addr_(own[index + 1 :, index], error - errors[index])
                self.levels[low + index], errors[index] = levels, error


def _blocks(features: int, block: int) -> list[Tensor]:
    return list(torch.arange(features).split(block))


def _factor(moments: Tensor, order: Tensor, damping: float) -> Tensor:
    """R [k, k] float32, upper triangular, with R Rᵀ the damped moments in ``order``.

    A feature that is always 0 is rounded by itself. Where rounding makes the moments indefinite, more damping helps.
    """
    turned = order.flip(0)
    matrix = moments[turned[:, None], turned]
    if len(matrix) > WIDE:
        matrix = matrix.float()
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean()) or 1.0
    diagonal.add_(torch.where(diagonal == 0, mean, 0))
    added = 0.0
    for attempt in range(12):
        wanted = damping * mean * 4**attempt
        diagonal.add_(wanted - added)
        added = wanted
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            # Of a wide layer each of these is a gigabyte.
            del matrix, diagonal
            return factor.flip(0, 1).float().contiguous()
        del factor
    raise LlmcError("the second moments of a layer's inputs are no numbers: its activations overflow")


def _correction(
    moments: Tensor, cross: Tensor, missing: Tensor | None, pull: float, damping: float, each: Each
) -> Correction:
    """``pull`` (cross - moments) (moments + damping)⁻¹, and ``pull`` missing (moments + damping)⁻¹.

    Of the first, both are damped, so that what hardly varies moves nothing: (cross + d) (moments + d)⁻¹ - 1.
    Source: Li et al. 2025 (GPTAQ), whose correction this is before any feature is rounded.
    """
    difference = cross.sub_(moments)
    factor = _factor(moments, torch.arange(len(moments), device=moments.device), damping)
    added = None if missing is None else _divided(missing, factor, pull, each)
    turn = _divided(difference, factor, pull, each)
    # Of a wide layer each of these is a gigabyte.
    del factor, difference
    turned = turn.T.contiguous()
    del turn
    return Correction(right_hand(turned), added)


def _divided(sums: Tensor, factor: Tensor, pull: float, each: Each) -> Tensor:
    """``pull`` sums (R Rᵀ)⁻¹; it may overwrite ``sums``."""
    result = sums.float()

    def divide(rows: Tensor) -> None:
        half = torch.linalg.solve_triangular(factor.T, rows, upper=False, left=False)
        rows.copy_(torch.linalg.solve_triangular(factor, half, upper=True, left=False))

    for _ in each(divide, result.split(WIDE if result.is_cuda else TOGETHER)):
        pass
    return result.mul_(pull)
