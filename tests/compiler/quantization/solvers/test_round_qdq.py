from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ....passes.graphs import Array, draw
from .. import standard_numbers as formats
from ..small_numbers import FP4, FP8, codes, signed

FEW = settings(max_examples=25, deadline=None)
DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16]
EPSILON: dict[Any, float] = {np.float32: 2.0**-23, np.float16: 2.0**-10, ml_dtypes.bfloat16: 2.0**-7}


def by_block(array: Array, size: int) -> Array:
    return np.asarray(array, np.float64).reshape(len(array), -1, size)


SCALES = st.sampled_from(np.asarray([1e-3, 0.05, 1.0, 200.0], np.float32))
MATRICES = st.builds(
    lambda rows, blocks, scale, seed, shift: (draw(rows, blocks * 32, seed=seed) + np.float32(shift)) * scale,
    st.integers(1, 4), st.integers(1, 3), SCALES, st.integers(0, 99),
    st.sampled_from([0, 0, 3, -3]),
)  # fmt: skip


@FEW
@given(array=MATRICES, dtype=st.sampled_from(DTYPES))
def test_int8(array: Array, dtype: Any) -> None:
    array = array.astype(dtype)
    wide = array.astype(np.float64)
    numbers, scales = formats.int8(array), formats.int8_scales(array)
    assert (numbers.dtype, numbers.shape, scales.dtype, scales.shape) == (
        np.int8, array.shape, np.float32, (len(array),)
    )  # fmt: skip
    np.testing.assert_array_equal(scales, scales.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(scales, np.abs(wide).max(axis=1) / 127, rtol=EPSILON[dtype], atol=3e-8)
    assert numbers.min() >= -127
    # The largest weight of a row has the largest number, unless the scale itself was rounded.
    if dtype is np.float32:
        assert (np.abs(numbers.astype(int)).max(axis=1) == 127).all()
    error = np.abs(numbers * scales[:, None].astype(np.float64) - wide)
    # Half a step; the largest weights may lie beyond 127 steps of a scale that was rounded down.
    assert (error <= scales[:, None] * (0.5 + 127 * EPSILON[dtype]) * 1.0001).all()
    inside = np.abs(wide) <= 127 * scales[:, None]
    assert (error[inside] <= (np.broadcast_to(scales[:, None], wide.shape) * 0.50001)[inside]).all()


@FEW
@given(array=MATRICES, dtype=st.sampled_from(DTYPES))
def test_fp8(array: Array, dtype: Any) -> None:
    """Each number is the nearest of E4M3's; the largest weight becomes 448."""
    array = array.astype(dtype)
    wide = array.astype(np.float64)
    numbers, scales = formats.fp8(array), formats.fp8_scales(array)
    assert (numbers.dtype, numbers.shape, scales.shape) == (ml_dtypes.float8_e4m3fn, array.shape, (len(array),))
    np.testing.assert_array_equal(scales, scales.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(scales, np.abs(wide).max(axis=1) / 448, rtol=EPSILON[dtype], atol=3e-8)
    ratio = np.clip(wide / scales[:, None], -448, 448)
    nearest = np.abs(ratio[..., None] - FP8).min(axis=-1)
    off = np.abs(ratio - numbers.astype(np.float64))
    np.testing.assert_allclose(off, nearest, rtol=0, atol=2e-4)
    assert (np.abs(numbers.astype(np.float64)).max(axis=1) == 448).all()


@FEW
@given(array=MATRICES, dtype=st.sampled_from(DTYPES), size=st.sampled_from([16, 32]))
def test_symmetric_int4(array: Array, dtype: Any, size: int) -> None:
    array = array.astype(dtype)
    wide = by_block(array, size)
    scales, packed = formats.int4_scales(array, size), formats.int4(array, size)
    assert (packed.dtype, packed.shape) == (np.uint8, (len(array), array.shape[1] // 2))
    assert scales.shape == wide.shape[:2]
    wanted = np.maximum(wide.max(axis=2) / 7, -wide.min(axis=2) / 8)
    np.testing.assert_allclose(scales, wanted, rtol=EPSILON[dtype], atol=3e-8)
    np.testing.assert_array_equal(scales, scales.astype(dtype).astype(np.float32))
    numbers = by_block(signed(packed), size)
    # Nothing is cut off: what meets 7 or -8 is all but reached.
    ratio = wide / scales[..., None]
    assert ratio.max() <= 7 * (1 + 2 * EPSILON[dtype])
    assert ratio.min() >= -8 * (1 + 2 * EPSILON[dtype])
    assert (np.abs(numbers - ratio) <= 0.5 + 8.01 * EPSILON[dtype]).all()
    assert ((numbers == 7).any(axis=2) | (numbers == -8).any(axis=2)).all()


@FEW
@given(array=MATRICES, dtype=st.sampled_from(DTYPES), size=st.sampled_from([16, 32]))
def test_int4_with_an_offset(array: Array, dtype: Any, size: int) -> None:
    """From a block's smallest weight to its largest in fifteen steps."""
    array = array.astype(dtype)
    wide = by_block(array, size)
    scales, offsets = formats.offset_int4_scales(array, size), formats.int4_offsets(array, size)
    np.testing.assert_allclose(scales, (wide.max(axis=2) - wide.min(axis=2)) / 15, rtol=EPSILON[dtype], atol=3e-8)
    for stored in (scales, offsets):
        np.testing.assert_array_equal(stored, stored.astype(dtype).astype(np.float32))
    numbers = by_block(signed(formats.offset_int4(array, size)), size)
    back = numbers * scales[..., None] + offsets[..., None]
    largest = np.abs(wide).max(axis=2, keepdims=True)
    # Half a step, and what the offset and the scale lose where they are stored.
    assert (np.abs(back - wide) <= scales[..., None] * 0.5001 + largest * 3 * EPSILON[dtype]).all()
    unsigned = formats.solve(array, f"qdq-uint4-offset@{size}")
    np.testing.assert_array_equal(by_block(unsigned.levels, size), numbers + 8)
    np.testing.assert_array_equal(unsigned.scales, scales)
    np.testing.assert_array_equal(unsigned.zeros, offsets)
    if dtype is np.float32:
        assert (numbers.min(axis=2) == -8).all()
        assert (numbers.max(axis=2) == 7).all()


@FEW
@given(array=MATRICES, dtype=st.sampled_from(DTYPES), size=st.sampled_from([16, 32]))
def test_int4_with_an_integer_zero_point(array: Array, dtype: Any, size: int) -> None:
    """Fifteen steps between a block's ends, 0 among them; 0 itself is met."""
    array = array.astype(dtype)
    wide = by_block(array, size)
    solved = formats.solve(array, f"qdq-uint4-zero@{size}")
    zeros, scales = solved.zero_points(), solved.scales
    high, low = np.maximum(wide.max(axis=2), 0), np.minimum(wide.min(axis=2), 0)
    np.testing.assert_allclose(scales, (high - low) / 15, rtol=EPSILON[dtype], atol=3e-8)
    np.testing.assert_array_equal(scales, scales.astype(dtype).astype(np.float32))
    assert (solved.levels.dtype, zeros.dtype) == (np.uint8, np.uint8)
    assert max(solved.levels.max(), zeros.max()) <= 15
    assert (np.abs(zeros + low / scales) <= 0.5 + 15 * EPSILON[dtype]).all()
    back = (by_block(solved.levels, size) - zeros[..., None]) * scales[..., None]
    # Half a step; the ends lose as much again where the zero point was rounded their way, or the scale down.
    error = np.abs(back - wide) / scales[..., None]
    assert error.max() <= 1 + 16 * EPSILON[dtype]
    inside = (wide > (low + 0.5001 * scales)[..., None]) & (wide < (high - 0.5001 * scales)[..., None])
    assert error[inside].max(initial=0) <= 0.5001 + 16 * EPSILON[dtype]


def test_integer_zero_points_by_hand() -> None:
    """A scale of 1 and zero at 5; all above zero; all below; a block of nothing."""
    array = np.zeros((1, 64), np.float32)
    array[0, :4] = [-5, 10, 2.4, -0.6]
    array[0, 16:32] = np.linspace(7.5, 30, 16)
    array[0, 32:48] = -array[0, 16:32]
    solved = formats.solve(array, "qdq-uint4-zero@16")
    assert solved.scales.tolist() == [[1, 2, 2, 1]]
    assert solved.zero_points().tolist() == [[5, 0, 15, 0]]
    assert solved.levels[0, :5].tolist() == [0, 15, 7, 4, 5]
    assert solved.levels[0, [16, 31, 32, 47, 48, 63]].tolist() == [4, 15, 11, 0, 0, 0]


@FEW
@given(seed=st.integers(0, 99), d=st.sampled_from([2.0**-9, 0.0123, 0.5]), m=st.sampled_from([-0.1, -0.25, 0.4]))
def test_blocks_of_numbers_and_a_minimum_come_back(seed: int, d: float, m: float) -> None:
    """GGUF's Q4_1, ``q * d + m`` with half-precision d and m: the same q, when 0 and 15 are among them."""
    random = np.random.default_rng(seed)
    q = random.integers(0, 16, (3, 2, 32))
    q[..., 3], q[..., 20] = 0, 15
    half = np.asarray([d, m], np.float16).astype(np.float32)
    array = (q.astype(np.float32) * half[0] + half[1]).reshape(3, 64)
    packed = formats.offset_int4(array, 32)
    np.testing.assert_array_equal(by_block(signed(packed), 32), q - 8)
    np.testing.assert_allclose(formats.offset_int4_scales(array, 32), half[0], rtol=1e-5)
    np.testing.assert_allclose(formats.int4_offsets(array, 32), half[1] + 8 * half[0], rtol=1e-5, atol=1e-7)


def test_the_lower_half_of_a_byte_comes_first() -> None:
    array = np.zeros((1, 16), np.float32)
    array[0, :4] = [7, -8, 3, -1]
    assert formats.int4_scales(array, 16).tolist() == [[1]]
    assert formats.int4(array, 16)[0, :3].tolist() == [0x87, 0xF3, 0x00]
    wide = np.zeros((2, 16), np.float32)
    wide[0, :4] = [6, -0.5, 1.5, 4]
    wide[1, 0] = 6 * 448
    assert formats.nvfp4(wide)[0, :3].tolist() == [0x97, 0x63, 0x00]


@FEW
@given(
    rows=st.integers(1, 4), blocks=st.integers(1, 4), scale=st.sampled_from([1e-2, 1.0, 50.0]),
    seed=st.integers(0, 99), spread=st.sampled_from([1.0, 100.0]),
)  # fmt: skip
def test_nvfp4(rows: int, blocks: int, scale: float, seed: int, spread: float) -> None:
    """Two levels: a block's scale is the E4M3 number next to its largest weight / 6, in units of the matrix's."""
    array = draw(rows, blocks * 16, seed=seed, scale=scale)
    array[:, :16] *= np.float32(spread)
    whole = formats.nvfp4_matrix_scale(array)
    assert whole == pytest.approx(float(np.abs(array).max()) / 6 / 448, rel=1e-6)
    scales, packed = formats.nvfp4_scales(array), formats.nvfp4(array)
    assert (scales.dtype, scales.shape) == (ml_dtypes.float8_e4m3fn, (rows, blocks))
    assert (packed.dtype, packed.shape) == (np.uint8, (rows, blocks * 8))
    wide = by_block(array, 16)
    wanted = np.clip(np.abs(wide).max(axis=2) / 6 / whole, 2.0**-9, 448)
    near = np.abs(wanted[..., None] - FP8).min(axis=-1)
    stored = scales.astype(np.float64)
    np.testing.assert_allclose(np.abs(stored - wanted), near, rtol=0, atol=1e-4)
    assert stored.max() == 448
    assert stored.min() > 0
    step = stored[..., None] * whole
    values = FP4[codes(packed)].reshape(wide.shape)
    ratio = np.clip(wide / step, -6, 6)
    nearest = np.abs(ratio[..., None] - FP4).min(axis=-1)
    np.testing.assert_allclose(np.abs(values - ratio), nearest, rtol=0, atol=1e-4)
    # At most half of the widest gap (4 to 6), and 1/16 of what a scale rounded down has cut off.
    assert (np.abs(values * step - wide) <= step * (1 + 6 / 16)).all()


def test_ties_go_to_the_even_number() -> None:
    array = np.zeros((1, 16), np.float32)
    array[0, :8] = [7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -7.5]
    assert signed(formats.int4(array, 16))[0, :8].tolist() == [7, 0, 2, 2, 0, -2, -2, -8]
    wide = np.zeros((1, 16), np.float32)
    wide[0, :7] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    assert formats.int8(wide)[0, :7].tolist() == [127, 0, 2, 2, 0, -2, -2]
    wide[0, :7] = [448, 17, 19, 21, 23, -17, -19]
    assert formats.fp8(wide).astype(np.float32)[0, :7].tolist() == [448, 16, 20, 20, 24, -16, -20]
    wide[0, :7] = [15, 0.5, 1.5, 2.5, 3.5, 14.5, 0]
    assert signed(formats.offset_int4(wide, 16))[0, :7].tolist() == [7, -8, -6, -6, -4, 6, -8]
    wide[0, :7] = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 5]
    wide = np.concatenate([wide, np.full((1, 16), 6 * 448, np.float32)])
    assert FP4[codes(formats.nvfp4(wide))][0, :7].tolist() == [6, 0, 1, 1, 2, 2, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-44])
def test_blocks_of_nothing_have_positive_scales(value: float, dtype: Any) -> None:
    array = np.zeros((2, 32), np.float32)
    array[1, 3] = value
    array = array.astype(dtype)
    for scales in (formats.int8_scales(array), formats.fp8_scales(array), formats.int4_scales(array, 16)):
        assert (scales == 1).all()
    assert (formats.offset_int4_scales(array, 16) == 1).all()
    assert not formats.int8(array).any()
    assert not formats.fp8(array).astype(np.float32).any()
    assert not formats.int4(array, 16).any()
    back = signed(formats.offset_int4(array, 16)) + np.repeat(formats.int4_offsets(array, 16), 16, axis=1)
    assert np.abs(back).max() == 0
    assert formats.nvfp4_matrix_scale(array) == 1
    assert (formats.nvfp4_scales(array).astype(np.float32) == 2.0**-9).all()
    assert not FP4[codes(formats.nvfp4(array))].any()


def test_constant_blocks_are_their_offset() -> None:
    array = np.full((2, 32), 0.3, np.float32)
    numbers = signed(formats.offset_int4(array, 16))
    back = numbers * np.repeat(formats.offset_int4_scales(array, 16), 16, axis=1)
    np.testing.assert_allclose(back + np.repeat(formats.int4_offsets(array, 16), 16, axis=1), array, atol=1e-6)


def test_scales_that_half_precision_makes_0_are_positive() -> None:
    """The weights are float16's smallest numbers; a scale of them is none any more."""
    array = np.full((1, 16), 6e-8, np.float16)
    for scales in (formats.int8_scales(array), formats.fp8_scales(array), formats.int4_scales(array, 16)):
        assert (scales == 1).all()
    assert formats.nvfp4_matrix_scale(array) == 1
    assert formats.nvfp4_matrix_scale(array.astype(np.float32)) == pytest.approx(float(array[0, 0]) / 2688)


def test_what_a_rounded_scale_does_not_reach_is_cut_off() -> None:
    """The smallest numbers of float16 are multiples of 2^-24: a scale of 1.4 of them is stored as 1."""
    unit = 2.0**-24

    def rows(*steps: float) -> Array:
        array = np.zeros((len(steps), 16), np.float16)
        array[:, 0] = np.asarray(steps) * unit
        return array

    eight = rows(-168, 168)
    assert (formats.int8_scales(eight) == unit).all()
    assert formats.int8(eight)[:, 0].tolist() == [-127, 127]
    floats = rows(-627, 627)
    assert (formats.fp8_scales(floats) == unit).all()
    assert formats.fp8(floats).astype(np.float32)[:, 0].tolist() == [-448, 448]
    four = rows(-11, 10)
    assert (formats.int4_scales(four, 16) == unit).all()
    assert signed(formats.int4(four, 16))[:, 0].tolist() == [-8, 7]
    raised = rows(21)
    assert formats.offset_int4_scales(raised, 16).tolist() == [[unit]]
    assert formats.int4_offsets(raised, 16).tolist() == [[8 * unit]]
    assert signed(formats.offset_int4(raised, 16))[0, :2].tolist() == [7, -8]


def test_numbers_are_those_of_the_scale_as_it_is_stored() -> None:
    """In bfloat16 a scale is off by up to 1/512, and 127 steps of it by a quarter of a step."""
    array = draw(64, 64, seed=3).astype(ml_dtypes.bfloat16)
    wide = array.astype(np.float64)
    scales = formats.int8_scales(array)
    exact = np.abs(wide).max(axis=1) / 127
    assert (scales != exact.astype(np.float32)).any()
    error = np.abs(formats.int8(array) * scales[:, None] - wide)
    careless = np.abs(np.rint(wide / exact[:, None]) * scales[:, None] - wide)
    assert error.mean() < careless.mean()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_rows_of_half_precision_are_computed_in_float32(dtype: Any) -> None:
    """Not in half: 448 times a scale, or 8 of them and a minimum, would be rounded on the way."""
    array = draw(5, 64, seed=8, scale=3).astype(dtype)
    wide = array.astype(np.float32)
    scale = np.abs(wide).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(formats.int8_scales(array), scale.astype(dtype).astype(np.float32))
    blocks = wide.reshape(5, 2, 32)
    step = ((blocks.max(axis=2) - blocks.min(axis=2)) / np.float32(15)).astype(dtype).astype(np.float32)
    middle = (blocks.min(axis=2) + 8 * step).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(formats.int4_offsets(array, 32), middle)
