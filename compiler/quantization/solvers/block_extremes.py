"""The largest and the smallest weight of each block, which every rounding begins with.

In: blocks. Out: two arrays. NumPy takes a short last axis apart number by number, which was most of the time of
rounding; here it goes along long rows: 16 bytes of each block at a time, those of all blocks one after another.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.quantization.solver import Array

LANES = 4
"""float32 in 16 bytes, which NumPy copies as one number."""
LONG = 512
"""Features from which NumPy is as fast by itself."""


def block_extremes(blocks: Array) -> tuple[Array, Array]:
    """``blocks.max(axis=2)`` and ``blocks.min(axis=2)`` of [n, blocks, block] float32 without gaps."""
    rows, count, size = blocks.shape
    if size % LANES or size >= LONG:
        return blocks.max(axis=2), blocks.min(axis=2)
    lanes = np.ascontiguousarray(blocks.reshape(-1, size).view(np.complex128).T).view(np.float32)
    lanes = lanes.reshape(size // LANES, -1, LANES)

    def reduced(extreme: np.ufunc) -> Array:
        by_lane = extreme.reduce(lanes, axis=0)
        ends = extreme(by_lane[:, 0], by_lane[:, 1])
        for lane in range(2, LANES):
            extreme(ends, by_lane[:, lane], out=ends)
        whole: Array = ends.reshape(rows, count)
        return whole

    return reduced(np.maximum), reduced(np.minimum)
