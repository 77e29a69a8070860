"""The quantization grid on which a weight lies, if it does.

In: a lazy weight. Out: its :class:`~llmc.compiler.quantization.grid.Grid`, or None. A few rows are looked at first,
which is all that most weights cost; where these lie on a grid, every row is, so that what is said is true of all.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.base.ordered_map import ordered_map
from llmc.compiler.graph.freed_memory import keep_freed_memory
from llmc.compiler.graph.lazy_weight import Array, LazyWeight
from llmc.compiler.graph.quantized_weight import row_reads
from llmc.compiler.quantization.grid import Extent, Grid, block_grids, find_grid

SAMPLE = 8
"""Rows that are looked at first, from all over a matrix."""


def weight_grid(weight: LazyWeight, largest_bits: int) -> Grid | None:
    """The grid of a matrix [out, in] or of a stack of matrices [count, out, in].

    Args:
        weight: Is read in part, and again whole where it seems to lie on a grid.
        largest_bits: Nothing is looked for that takes more.
    """
    sample = find_grid(_sample(weight), largest_bits)
    if sample is None:
        return None
    keep_freed_memory()
    block, width = sample.block, sample.bits
    extents = ordered_map(
        lambda read: Extent.of(block_grids(read(), block, width), width), row_reads(weight, 0, weight.stored_shape[0])
    )
    whole = next(extents)
    for extent in extents:
        whole = whole.joined(extent)
        if not whole.on_grid:
            break
    return whole.grid(block, width)


def _sample(weight: LazyWeight) -> Array:
    height, *_, features = weight.stored_shape
    if len(weight.stored_shape) > 2:
        rows = weight.rows(0, 1).reshape(-1, features)
        return rows[_places(len(rows))]
    return np.concatenate([weight.rows(place, place + 1) for place in _places(height)])


def _places(count: int) -> list[int]:
    """Some of so many rows, the first and the last among them."""
    return sorted({int(place) for place in np.linspace(0, count - 1, SAMPLE)})
