from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ....passes.graphs import draw, parse, run
from ..block_numbers import BlockFormat

Array = npt.NDArray[Any]
FORMATS = [BlockFormat(bits, size, symmetric) for bits in (4, 8) for size in (16, 32) for symmetric in (True, False)]


def name_of(fmt: BlockFormat) -> str:
    return f"int{fmt.bits}-{fmt.block_size}-{'symmetric' if fmt.symmetric else 'asymmetric'}"


every_format = pytest.mark.parametrize("fmt", FORMATS, ids=name_of)


def matmul(fmt: BlockFormat, rows: Array) -> Array:
    """x · rowsᵀ for x = 1, by com.microsoft::MatMulNBits: what the kernel takes the integers for, [out, in]."""
    height, width = rows.shape
    blocks = -(-width // fmt.block_size)
    weights = {
        "packed": fmt.pack(rows).reshape(height, blocks, fmt.block_size * fmt.bits // 8),
        "scales": fmt.scales(rows),
        **({} if fmt.symmetric else {"zeros": fmt.packed_zero_points(rows)}),
    }
    attributes = f"K={width}, N={height}, bits={fmt.bits}, block_size={fmt.block_size}, accuracy_level=0"
    inputs = ", ".join(["x", *weights])
    call = f"com.microsoft.MatMulNBits<{attributes}>({inputs})"
    text = f"m (float[n, {width}] x) => (float[n, {height}] y) {{ y = {call} }}"
    return run(parse(text, weights), {"x": np.eye(width, dtype=np.float32)})["y"].T


def gather(fmt: BlockFormat, rows: Array) -> Array:
    """All rows, by com.microsoft::GatherBlockQuantized."""
    zeros = {} if fmt.symmetric else {"zeros": fmt.packed_zero_points(rows)}
    weights = {"packed": fmt.pack(rows), "scales": fmt.scales(rows), **zeros}
    attributes = f"gather_axis=0, quantize_axis=1, bits={fmt.bits}, block_size={fmt.block_size}"
    inputs = ", ".join(["packed", "ids", *list(weights)[1:]])
    call = f"com.microsoft.GatherBlockQuantized<{attributes}>({inputs})"
    text = f"m (int64[n] ids) => (float[n, {rows.shape[1]}] y) {{ y = {call} }}"
    return run(parse(text, weights), {"ids": np.arange(len(rows))})["y"]


@every_format
@pytest.mark.parametrize("width", [32, 96, 72, 40, 7])
def test_matmulnbits_means_the_same(fmt: BlockFormat, width: int) -> None:
    """Also where the last block is not full."""
    rows = draw(12, width, seed=width)
    np.testing.assert_allclose(matmul(fmt, rows), fmt.dequantize(rows), rtol=1e-6, atol=1e-6)


@every_format
def test_gatherblockquantized_means_the_same(fmt: BlockFormat) -> None:
    rows = draw(9, 96)
    np.testing.assert_allclose(gather(fmt, rows), fmt.dequantize(rows), rtol=1e-6, atol=1e-6)


values = st.floats(-1000, 1000, width=32, allow_subnormal=True)
blocks_of_16 = st.lists(st.lists(values, min_size=16, max_size=16), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=blocks_of_16)
def test_asymmetric_error_is_half_a_step(bits: int, rows: list[list[float]]) -> None:
    fmt, array = BlockFormat(bits, 16, symmetric=False), np.asarray(rows, np.float32)
    step = fmt.scales(array)
    # The step itself is rounded to float32, which shows where a value is many steps away from 0.
    assert (np.abs(fmt.dequantize(array) - array) <= step * (0.5 + 1e-4) + np.finfo(np.float32).tiny * 256).all()


@settings(max_examples=150, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=blocks_of_16)
def test_symmetric_error_is_half_a_step_except_at_the_end_without_a_level(bits: int, rows: list[list[float]]) -> None:
    """The extreme value is -2^(bits-1) steps; the largest level on the other side is one step short of its mirror.

    So values of the other sign beyond that level and a half are clipped to it, by at most one whole step.
    """
    fmt, array, half = BlockFormat(bits, 16, symmetric=True), np.asarray(rows, np.float32), 2 ** (bits - 1)
    scales = fmt.scales(array)
    error, step = np.abs(fmt.dequantize(array) - array), np.abs(scales)
    with np.errstate(divide="ignore", invalid="ignore"):
        clipped = np.where(scales == 0, False, array / scales > half - 0.5)
    slack = np.finfo(np.float32).tiny * 256
    assert (error <= np.where(clipped, step * (1 + 1e-4), step * (0.5 + 1e-4)) + slack).all()
    # Where both signs reach the extreme, it is the negative one that is met.
    extreme = np.where(array.max(1) > -array.min(1), array.argmax(1), array.argmin(1))[:, None]
    met, wanted = (np.take_along_axis(a, extreme, axis=1) for a in (fmt.dequantize(array), array))
    np.testing.assert_allclose(met, wanted, rtol=1e-6, atol=float(slack))


@settings(max_examples=100, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=blocks_of_16)
def test_with_an_offset_the_error_is_half_a_step(bits: int, rows: list[list[float]]) -> None:
    """Both ends of a block are levels, wherever zero is."""
    fmt, array = BlockFormat(bits, 16, symmetric=True, offset=True), np.asarray(rows, np.float32)
    # The step and the offset are rounded to float32, which shows where all values are far from 0.
    slack = np.abs(array).max(axis=1, keepdims=True) * 4e-7 + np.finfo(np.float32).tiny * 256
    assert (np.abs(fmt.dequantize(array) - array) <= fmt.scales(array) * (0.5 + 1e-4) + slack).all()


def test_blocks_that_come_with_an_offset_are_met() -> None:
    """As GGUF's Q4_1 stores them: 16 levels above a minimum."""
    rng = np.random.default_rng(0)
    levels = rng.permuted(np.tile(np.arange(16), (5, 2, 2)), axis=2)
    scale, low = rng.uniform(0.01, 0.1, (5, 2, 1)), rng.uniform(-1, 1, (5, 2, 1))
    rows = (levels * scale + low).astype(np.float32).reshape(5, 64)
    fmt = BlockFormat(4, 32, symmetric=True, offset=True)
    np.testing.assert_allclose(fmt.dequantize(rows), rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_extreme_value_is_exact_and_its_mirror_is_clipped(sign: int) -> None:
    fmt = BlockFormat(4, 16, symmetric=True)
    row = np.zeros((1, 16), np.float32)
    row[0, :4] = np.asarray([8.0, -7.9, -7.0, 3.4]) * sign
    assert (fmt.dequantize(row)[0, :4] * sign).tolist() == [8.0, -7.0, -7.0, 3.0]
    assert fmt.scales(row).tolist() == [[-sign]]


def test_where_both_signs_reach_the_extreme_the_negative_one_is_met() -> None:
    fmt = BlockFormat(4, 16, symmetric=True)
    row = np.zeros((1, 16), np.float32)
    row[0, :2] = [4.0, -4.0]
    assert fmt.scales(row).tolist() == [[0.5]]
    assert fmt.dequantize(row)[0, :2].tolist() == [3.5, -4.0]


@pytest.mark.parametrize(("bits", "zero"), [(4, 8), (8, 128)])
def test_ties_go_to_the_even_integer(bits: int, zero: int) -> None:
    fmt = BlockFormat(bits, 16, symmetric=True)
    row = np.zeros((1, 16), np.float32)
    row[0, :7] = [-zero, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    assert fmt.dequantize(row)[0, :7].tolist() == [-zero, 0, 2, 2, 0, -2, -2]


def levels_of(fmt: BlockFormat, rows: Array) -> Array:
    packed = fmt.pack(rows)
    return packed if fmt.bits == 8 else np.stack([packed & 15, packed >> 4], axis=2).reshape(len(rows), -1)


@every_format
def test_what_follows_the_last_feature_stands_for_zero(fmt: BlockFormat) -> None:
    """A kernel may multiply it with whatever follows its input."""
    rows = draw(3, fmt.block_size + 5) + np.float32(2)
    zeros = np.full(3, 2 ** (fmt.bits - 1))
    if not fmt.symmetric:
        packed = fmt.packed_zero_points(rows)
        zeros = packed[:, 1] if fmt.bits == 8 else packed[:, 0] >> 4
    tail = levels_of(fmt, rows)[:, fmt.block_size + 5 :]
    assert tail.shape[1] == fmt.block_size - 5
    assert (tail == zeros[:, None]).all()


@every_format
def test_a_block_of_zeros_is_zeros(fmt: BlockFormat) -> None:
    rows = np.zeros((2, 2 * fmt.block_size), np.float32)
    rows[1, fmt.block_size :] = draw(fmt.block_size)
    result = fmt.dequantize(rows)
    assert not result[0].any()
    assert not result[1, : fmt.block_size].any()
    assert result[1].any()
    np.testing.assert_allclose(matmul(fmt, rows), result, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gather(fmt, rows), result, rtol=1e-6, atol=1e-6)


@every_format
@pytest.mark.parametrize("value", [1e-45, -1e-40, 3e-39, 1e-37])
def test_a_block_too_small_for_a_scale_is_zeros(fmt: BlockFormat, value: float) -> None:
    rows = np.full((1, fmt.block_size), value, np.float32)
    with np.errstate(all="raise", under="ignore"):
        result = fmt.dequantize(rows)
    assert np.isfinite(result).all()
    assert np.abs(result - rows).max() <= abs(value) * 1.001


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("spread", [0.0, 1.5e-42, 3e-39, 1e-37])
def test_a_block_too_narrow_for_a_scale_is_its_offset(bits: int, spread: float) -> None:
    """Among others the value right in the middle, which no division makes infinite or undefined."""
    fmt = BlockFormat(bits, 16, symmetric=True, offset=True)
    rows = (np.arange(2**bits, dtype=np.float32)[None] / np.float32(2**bits - 1)) * np.float32(spread)
    with np.errstate(all="raise", under="ignore"):
        result = fmt.dequantize(rows)
    assert np.abs(result - rows).max() <= spread * 1.001
    scales = fmt.scales(rows)
    assert ((scales == 0) | (scales >= np.finfo(np.float32).tiny)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_an_asymmetric_block_of_one_sign_keeps_zero(bits: int) -> None:
    """Zero stays a level, so that the padding after the last feature and pruned weights stay zero."""
    fmt = BlockFormat(bits, 16, symmetric=False)
    solid = np.linspace(5, 6, 16, dtype=np.float32)[None]
    holed = solid.copy()
    holed[0, 3] = 0.0
    for rows in (solid, -solid, holed, -holed):
        assert np.abs(fmt.dequantize(rows) - rows).max() <= 6 / (2**bits - 1) / 2 + 1e-5
        assert not fmt.dequantize(rows)[rows == 0].any()


def test_packing_puts_the_first_value_low() -> None:
    fmt = BlockFormat(4, 16, symmetric=True)
    row = np.arange(-8, 8, dtype=np.float32)[None]
    assert fmt.pack(row)[0].tolist() == [level | (level + 1) << 4 for level in range(0, 16, 2)]


def test_an_odd_number_of_zero_points_ends_in_a_half_byte() -> None:
    fmt = BlockFormat(4, 16, symmetric=False)
    rows = np.concatenate([np.linspace(-s, 15 - s, 16) for s in (3, 5, 9)]).astype(np.float32)[None]
    assert fmt.packed_zero_points(rows).tolist() == [[3 | 5 << 4, 9]]


@every_format
def test_shapes(fmt: BlockFormat) -> None:
    rows = draw(5, 50)
    blocks = -(-50 // fmt.block_size)
    assert fmt.pack(rows).shape == (5, blocks * fmt.block_size * fmt.bits // 8)
    assert fmt.scales(rows).shape == (5, blocks)
    assert fmt.dequantize(rows).shape == (5, 50)
    assert fmt.pack(rows).dtype == np.uint8
    if not fmt.symmetric:
        zero_points = fmt.packed_zero_points(rows)
        assert (zero_points.shape, zero_points.dtype) == ((5, -(-blocks * fmt.bits // 8)), np.uint8)
    assert fmt.scales(rows).dtype == np.float32


@every_format
def test_rows_are_quantized_alone(fmt: BlockFormat) -> None:
    """The writer streams a few rows at a time."""
    rows = draw(6, 48)
    for part in (fmt.pack, fmt.scales, *([] if fmt.symmetric else [fmt.packed_zero_points])):
        assert np.array_equal(np.concatenate([part(rows[:1]), part(rows[1:4]), part(rows[4:])]), part(rows))


def test_zero_points_are_integers_and_offsets_floats() -> None:
    rows = draw(3, 70)
    assert BlockFormat(4, 32, True).solve(rows).zeros is None
    assert BlockFormat(4, 32, False).zeros(rows).dtype == np.uint8
    offsets = BlockFormat(4, 32, True, offset=True).zeros(rows)
    assert (offsets.shape, offsets.dtype) == ((3, 3), np.float32)
