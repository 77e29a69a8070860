"""The largest and the smallest of each block, as NumPy says."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.quantization.solvers.block_extremes import LONG, block_extremes


@pytest.mark.parametrize("size", [4, 16, 32, 64, LONG - 4, LONG, 7, 42])
def test_extremes_are_met_wherever_they_lie_in_a_block(size: int) -> None:
    """Row r has them at feature r of its first block and elsewhere in the second."""
    rows = np.random.default_rng(size).uniform(-1, 1, (size, 2 * size)).astype(np.float32)
    places = np.arange(size)
    rows[places, places] = 3 + places
    rows[places, size + (places * 5 + 3) % size] = -2 - places
    blocks = rows.reshape(size, 2, size)
    largest, smallest = block_extremes(blocks)
    np.testing.assert_array_equal(largest, blocks.max(axis=2))
    np.testing.assert_array_equal(smallest, blocks.min(axis=2))
    assert largest[:, 0].tolist() == (3 + places).tolist()


def test_what_is_no_number_is_seen() -> None:
    blocks = np.zeros((2, 3, 32), np.float32)
    blocks[1, 2, 31] = np.nan
    for extremes in block_extremes(blocks):
        assert np.isnan(extremes).tolist() == [[False] * 3, [False, False, True]]
