"""Searched scales: each block of a row by itself, on the grid of least squared error.

In: rows and, where there are any, second moments of the layer's inputs, whose diagonal says what an error of each
feature costs. Out: numbers. Rounding to nearest spends a block's levels on its extremes; a grid that cuts them off a
little errs less in sum. It needs no text, and rows do not depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, Statistics
from llmc.compiler.quantization.solvers.round import RoundToNearest


@dataclass(frozen=True)
class SearchedScales:
    """The solver; schemes of floats, and blocks of 8 bits, where nothing is to be won, are rounded.

    Attributes:
        clippings: Ratios of a block's range that are tried.
    """

    clippings: int = 12

    def needs_layer(self, scheme: Scheme) -> bool:
        """As rounding."""
        return RoundToNearest().needs_layer(scheme)

    def solve(self, rows: Array, seen: Statistics | None, scheme: Scheme) -> Solved:
        """See :class:`~llmc.compiler.quantization.solver.Solver`."""
        if not scheme.storage.is_integer() or scheme.bits == 8:
            return RoundToNearest().solve(rows, seen, scheme)
        import torch

        from llmc.compiler.quantization.solvers.block_grid import BlockGrid, range_scales

        height, features = rows.shape
        count = scheme.blocks(features)
        size = scheme.block or features
        weight = torch.from_numpy(np.array(rows, np.float32, order="C"))
        packed = range_scales(weight, scheme).repeat_interleave(count) if scheme.form == "packed" else None
        grid = BlockGrid(scheme, rows.dtype, self.clippings, packed)
        weight = torch.nn.functional.pad(weight, (0, count * size - features))
        # [features of a block, blocks of all rows]
        blocks = weight.reshape(height * count, size).T.contiguous()
        importance = torch.ones(size, 1)
        if seen is not None and seen.second_moments is not None:
            diagonal = torch.from_numpy(np.diagonal(seen.second_moments).astype(np.float32))
            diagonal = torch.nn.functional.pad(diagonal, (0, count * size - features))
            importance = diagonal.reshape(count, size).T.repeat(1, height)
        steps = grid.fit(blocks, importance)
        levels = steps.levels(blocks, grid.low, grid.top).to(torch.uint8).T.reshape(height, -1)
        return grid.solved(levels, steps, (height, count))
