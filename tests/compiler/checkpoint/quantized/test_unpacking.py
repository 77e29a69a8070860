"""Small numbers out of words, against packing one number at a time."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.checkpoint.quantized.unpacking import E2M1, nibbles, unpack_words

from .packing import pack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 32, 37])
def test_numbers_come_back(bits: int, count: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 2**bits, (3, count))
    assert np.array_equal(unpack_words(pack(numbers, bits), bits, count), numbers)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_no_rows_are_no_rows(bits: int) -> None:
    assert unpack_words(np.empty((0, 3), np.int32), bits, 8).shape == (0, 8)


def test_the_order_within_a_byte() -> None:
    data = np.array([[0x21, 0x43]], np.uint8)
    assert nibbles(data).tolist() == [[1, 2, 3, 4]]
    assert nibbles(data, high_first=True).tolist() == [[2, 1, 4, 3]]


def test_four_bit_floats_are_those_of_ml_dtypes() -> None:
    import ml_dtypes

    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    assert np.array_equal(E2M1, codes.astype(np.float32))
    assert np.array_equal(np.signbit(E2M1), np.signbit(codes.astype(np.float32)))
