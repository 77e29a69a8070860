"""Numbers in bytes: several of a few bits side by side, and levels in two planes."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.quantization.scheme import PACKED_BITS
from llmc.compiler.quantization.solver import high_plane, low_bits, low_plane, pack


@pytest.mark.parametrize(
    ("bits", "numbers", "packed"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 1, 1], [0b10001101, 1]),
        (2, [3, 0, 1, 2, 3], [0b10010011, 3]),
        (4, [0xA, 0xB, 0xC], [0xBA, 0xC]),
        (8, [7, 255], [7, 255]),
    ],
)
def test_the_first_number_lies_lowest(bits: int, numbers: list[int], packed: list[int]) -> None:
    rows = np.asarray([numbers, numbers[::-1]], np.uint8)
    assert pack(rows, bits)[0].tolist() == packed
    assert pack(rows, bits).dtype == np.uint8


def test_packing_leaves_the_numbers_as_they_are() -> None:
    rows = np.arange(8, dtype=np.uint8)[None]
    pack(rows, 4)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_planes_hold_all_bits(bits: int) -> None:
    low = low_bits(bits)
    assert (bits, low) in {(2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (8, 8)}
    levels = np.random.default_rng(bits).integers(0, 2**bits, (3, 64)).astype(np.uint8)

    def numbers(plane: np.ndarray, width: int) -> np.ndarray:
        places = np.arange(0, 8, width, dtype=np.uint8)
        return ((plane[..., None] >> places) & np.uint8(2**width - 1)).reshape(len(plane), -1)

    whole = numbers(low_plane(levels, bits), low)
    if bits > low:
        whole = whole | numbers(high_plane(levels, bits), bits - low) << np.uint8(low)
    assert (whole == levels).all()
    assert low_plane(levels, bits).nbytes == 3 * 64 * low // 8
