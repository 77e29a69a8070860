"""8-bit floats in blocks, with scales in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ....passes.graphs import Array, draw
from .. import standard_numbers as formats

LARGEST = 448.0


def dequantized(packed: Array, scales: Array, block_size: int) -> Array:
    """As the operator's specification has it: fp8(B) * scale of its block."""
    wide = packed.astype(np.float32).reshape(*scales.shape, block_size) * scales[..., None]
    return wide.reshape(len(packed), -1)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5), blocks=st.integers(1, 4), block_size=st.sampled_from([16, 32, 128]),
    scale=st.sampled_from([1e-6, 0.02, 1.0, 3e4]), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_are_rounded_to_the_nearest(rows: int, blocks: int, block_size: int, scale: float, seed: int) -> None:
    array = draw(rows, blocks * block_size, seed=seed, scale=scale)
    scales, packed = formats.fp8_block_scales(array, block_size), formats.fp8_blocks(array, block_size)
    assert (scales.shape, scales.dtype) == ((rows, blocks), np.float32)
    assert (packed.shape, packed.dtype) == (array.shape, ml_dtypes.float8_e4m3fn)
    largest = np.abs(array).reshape(rows, blocks, block_size).max(axis=2)
    np.testing.assert_allclose(scales * LARGEST, largest, rtol=1e-6)
    ratio = array.reshape(rows, blocks, block_size) / scales[..., None]
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    every = every[np.isfinite(every)]
    nearest = np.abs(ratio[..., None] - every).min(axis=-1).reshape(array.shape)
    off = np.abs(ratio.reshape(array.shape) - packed.astype(np.float32))
    np.testing.assert_allclose(off, nearest, rtol=0, atol=1e-4)
    # Three bits of mantissa: at most 1/16 off, or half the smallest step below 2^-6.
    error = np.abs(dequantized(packed, scales, block_size) - array)
    step = np.repeat(scales, block_size, axis=1) * 2.0**-10
    assert (error <= np.maximum(np.abs(array) / 16, step) * 1.001).all()


def test_the_largest_weight_of_a_block_is_kept() -> None:
    array = draw(3, 64)
    kept = dequantized(formats.fp8_blocks(array, 32), formats.fp8_block_scales(array, 32), 32)
    places = np.abs(array).reshape(3, 2, 32).argmax(axis=2)[..., None]
    both = [np.take_along_axis(part.reshape(3, 2, 32), places, axis=2) for part in (kept, array)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-6)


def test_ties_go_to_the_even_number() -> None:
    """From 16 to 32 every second number is one of E4M3's; the even ones end in a mantissa of 0."""
    array = np.zeros((1, 16), np.float32)
    array[0, :6] = [448, 17, 19, 21, 23, -17]
    assert formats.fp8_blocks(array, 16).astype(np.float32)[0, :6].tolist() == [448, 16, 20, 20, 24, -16]


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-44])
def test_blocks_of_nothing_have_a_scale(value: float) -> None:
    array = np.zeros((2, 32), np.float32)
    array[1, 3] = value
    assert formats.fp8_block_scales(array, 16).tolist() == [[1, 1], [1, 1]]
    assert np.isfinite(formats.fp8_blocks(array, 16).astype(np.float32)).all()


def test_weights_beyond_the_largest_number_are_the_largest() -> None:
    """The smallest floats have few scales between them; 448 of this one do not reach the block's weights."""
    value = np.float32(1.4 * 448) * np.finfo(np.float32).smallest_subnormal
    array = np.full((2, 16), value, np.float32)
    array[1] *= -1
    assert (formats.fp8_block_scales(array, 16) == np.finfo(np.float32).smallest_subnormal).all()
    assert formats.fp8_blocks(array, 16).astype(np.float32)[:, 0].tolist() == [448, -448]


def test_half_precision_weights_are_taken_as_they_are() -> None:
    array = draw(4, 32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        rounded = array.astype(dtype)
        wide = rounded.astype(np.float32)
        np.testing.assert_array_equal(formats.fp8_block_scales(rounded, 16), formats.fp8_block_scales(wide, 16))
        np.testing.assert_array_equal(
            formats.fp8_blocks(rounded, 16).view(np.uint8), formats.fp8_blocks(wide, 16).view(np.uint8)
        )
