"""Which formats' numbers are found again in the floats that they stand for, and that they come back to the bit."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.checkpoint.quantized.awq import awq_layers
from llmc.compiler.checkpoint.quantized.bitsandbytes import bitsandbytes_layers
from llmc.compiler.checkpoint.quantized.compressed_tensors import compressed_layers
from llmc.compiler.checkpoint.quantized.fp4 import PackedFloat4
from llmc.compiler.checkpoint.quantized.gptq import gptq_layers
from llmc.compiler.checkpoint.quantized.hqq import hqq_layers
from llmc.compiler.checkpoint.quantized.layer import Parts
from llmc.compiler.checkpoint.quantized.torchao import torchao_layers
from llmc.compiler.checkpoint.weights import ArrayWeights
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.grid import Grid, find_grid
from llmc.compiler.quantization.scheme import SCHEMES, Scheme
from llmc.compiler.quantization.solvers.exact_grid import ExactGrid

from .packing import Array, awq, draw, gptq, pack, under

OUT, FEATURES = 24, 512


def parts(tensors: dict[str, Array]) -> Parts:
    return Parts(ArrayWeights(under("q", tensors)))


def of_gptq(bits: int, groups: int, *, symmetric: bool = False, index: Array | None = None) -> Array:
    numbers = draw(OUT, FEATURES, groups, bits, symmetric=symmetric)
    [layer] = gptq_layers({"bits": bits}, parts(gptq(*numbers, bits, index)))
    return layer.rows(0, OUT)


def of_awq(groups: int) -> Array:
    [layer] = awq_layers({}, parts(awq(*draw(OUT, FEATURES, groups, 4))))
    return layer.rows(0, OUT)


def of_packed(bits: int, groups: int, dtype: type = np.float16) -> Array:
    levels, _, scales = draw(OUT, FEATURES, groups, bits, symmetric=True)
    tensors = {
        "weight_packed": pack(levels, bits),
        "weight_scale": scales.astype(dtype),
        "weight_shape": np.array(levels.shape, np.int64),
    }
    [layer] = compressed_layers({"config_groups": {"0": {"weights": {"num_bits": bits}}}}, parts(tensors))
    return layer.rows(0, OUT)


def of_int8_rows() -> Array:
    draws = np.random.default_rng(0)
    tensors = {
        "weight": draws.normal(0, 40, (OUT, FEATURES)).clip(-127, 127).astype(np.int8),
        "weight_scale": draws.uniform(0.001, 0.002, (OUT, 1)).astype(np.float32),
    }
    [layer] = compressed_layers({}, parts(tensors))
    return layer.rows(0, OUT)


def of_float4(group: int) -> Array:
    draws = np.random.default_rng(0)
    scales = draws.uniform(1, 300, (OUT, FEATURES // group)).astype(ml_dtypes.float8_e4m3fn)
    tensors = {"p": draws.integers(0, 256, (OUT, FEATURES // 2)).astype(np.uint8), "s": scales}
    arrays = ArrayWeights({**tensors, "o": np.array([0.01], np.float32)})
    layer = PackedFloat4(Parts(arrays), "w", "p", "s", "", overall=("o", "times"))
    return layer.rows(0, OUT)


def of_mxfp4() -> Array:
    """Scales are powers of two, so that values look as if they had been rounded to bfloat16."""
    draws = np.random.default_rng(0)
    scales = draws.integers(118, 130, (OUT, FEATURES // 32)).astype(np.uint8)
    tensors = {"p": draws.integers(0, 256, (OUT, FEATURES // 2)).astype(np.uint8), "s": scales}
    return PackedFloat4(Parts(ArrayWeights(tensors)), "w", "p", "s", "").rows(0, OUT)


def of_torchao_floats() -> Array:
    draws = np.random.default_rng(0)
    tensors = {
        "_weight_qdata": draws.integers(0, 256, (OUT, FEATURES // 2)).astype(np.uint8),
        "_weight_scale": draws.uniform(1, 300, (OUT, FEATURES // 16)).astype(ml_dtypes.float8_e4m3fn),
        "_weight_per_tensor_scale": np.array(0.0021, np.float32),
    }
    stated = {"q.weight": '{"_type": "NVFP4Tensor", "_data": {"block_size": 16}}'}
    [layer] = torchao_layers({}, Parts(ArrayWeights(under("q", tensors)), stated))
    return layer.rows(0, OUT)


def of_torchao_words(size: int) -> Array:
    draws, shape = np.random.default_rng(0), (FEATURES // size, OUT)
    tensors = {
        "_weight_qdata": draws.integers(-(2**31), 2**31, (OUT, FEATURES // 8)).astype(np.int32),
        "_weight_scale": draws.uniform(0.01, 0.02, shape).astype(np.float16),
        "_weight_zero_point": draws.integers(0, 16, shape).astype(np.int8),
    }
    stated = {"q.weight": '{"_type": "Int4PlainInt32Tensor"}'}
    [layer] = torchao_layers({}, Parts(ArrayWeights(under("q", tensors)), stated))
    return layer.rows(0, OUT)


def of_hqq(bits: int, size: int, dtype: type = np.float16) -> Array:
    draws = np.random.default_rng(0)
    groups = OUT * FEATURES // size
    tensors = {
        "W_q": draws.integers(0, 256, (groups * bits // 8, size)).astype(np.uint8),
        "scale": draws.uniform(0.01, 0.02, (groups, 1)).astype(dtype),
        "zero": draws.uniform(0, 2**bits, (groups, 1)).astype(dtype),
        "shape": np.array([OUT, FEATURES]),
        "axis": np.array(1, np.int32),
        "group_size": np.array(size, np.int32),
        "nbits": np.array(bits, np.int32),
        "packing": np.frombuffer(f"{bits}bit_u8".encode(), np.uint8),
    }
    [layer] = hqq_layers({}, parts(tensors))
    return layer.rows(0, OUT)


def of_bitsandbytes_int8() -> Array:
    draws = np.random.default_rng(0)
    tensors = {
        "weight": draws.normal(0, 40, (OUT, FEATURES)).clip(-127, 127).astype(np.int8),
        "SCB": draws.uniform(0.5, 2, OUT).astype(np.float32),
    }
    [layer] = bitsandbytes_layers({}, parts(tensors))
    return layer.rows(0, OUT)


def of_torchao_bytes(bits: int, size: int) -> Array:
    """Signed numbers with whole zero points, a byte each."""
    draws, top = np.random.default_rng(0), 2 ** (bits - 1)
    shape = (OUT, FEATURES // size)
    tensors = {
        "_weight_qdata": draws.integers(-top, top, (OUT, FEATURES)).astype(np.int8),
        "_weight_scale": draws.uniform(0.01, 0.02, shape).astype(np.float32),
        "_weight_zero_point": draws.integers(-top, top, shape).astype(np.int8),
    }
    stated = {"q.weight": '{"_type": "IntxUnpackedToInt8Tensor"}'}
    [layer] = torchao_layers({}, Parts(ArrayWeights(under("q", tensors)), stated))
    return layer.rows(0, OUT)


def of_torchao_int4(size: int) -> Array:
    draws = np.random.default_rng(0)
    shape = (FEATURES // size, OUT)
    tensors = {
        "_weight_qdata": draws.integers(-128, 128, (OUT, FEATURES // 2)).astype(np.int8),
        "_weight_scale": draws.uniform(0.01, 0.02, shape).astype(ml_dtypes.bfloat16),
        "_weight_zero_point": draws.uniform(-0.1, 0.1, shape).astype(ml_dtypes.bfloat16),
    }
    arrays = ArrayWeights(under("q", tensors))
    [layer] = torchao_layers({}, Parts(arrays, {"q.weight": '{"_type": "Int4Tensor"}'}))
    return layer.rows(0, OUT)


@pytest.mark.parametrize(
    ("make", "bits", "block"),
    [
        (lambda: of_hqq(4, 64), 4, 64),
        (lambda: of_hqq(4, 128, np.float32), 4, 128),
        (lambda: of_hqq(2, 64), 4, 64),
        (lambda: of_hqq(8, 128), 8, 128),
        (lambda: of_torchao_int4(128), 4, 128),
        (lambda: of_torchao_int4(32), 4, 32),
    ],
)
def test_zeros_between_levels_need_offsets(make: Callable[[], Array], bits: int, block: int) -> None:
    """An offset is a float of its own; what comes back is within a few roundings of float32."""
    rows = make()
    grid = find_grid(rows, 8)
    assert grid is not None
    assert (grid.bits, grid.block, grid.zero) == (bits, block, "offset")
    scheme = scheme_of(grid)
    found = dequantize(ExactGrid().solve(rows, None, scheme), scheme, FEATURES)
    assert np.abs(found - rows).max() <= 2.0**-23 * np.abs(rows).max()


@pytest.mark.parametrize(
    ("make", "bits", "block"),
    [
        (lambda: of_gptq(4, 4), 4, 128),
        (lambda: of_gptq(4, 16), 4, 32),
        (lambda: of_gptq(4, 1), 4, 128),
        (lambda: of_gptq(4, 4, symmetric=True), 4, 128),
        (lambda: of_gptq(3, 4), 4, 128),
        (lambda: of_gptq(2, 4), 4, 128),
        (lambda: of_gptq(8, 4), 8, 128),
        (lambda: of_gptq(8, 4, symmetric=True), 8, 128),
        (lambda: of_awq(4), 4, 128),
        (lambda: of_awq(8), 4, 64),
        (lambda: of_packed(4, 4), 4, 128),
        (lambda: of_packed(4, 4, ml_dtypes.bfloat16), 4, 128),
        (lambda: of_packed(4, 1), 4, 128),
        (lambda: of_packed(8, 4), 8, 128),
        (of_int8_rows, 8, 128),
        (lambda: of_float4(16), 8, 16),
        (lambda: of_float4(32), 8, 32),
        (of_mxfp4, 8, 32),
        (of_torchao_floats, 8, 16),
        (lambda: of_torchao_words(128), 4, 128),
        (lambda: of_torchao_bytes(4, 32), 4, 32),
        (lambda: of_torchao_bytes(4, 128), 4, 128),
        (lambda: of_torchao_bytes(8, 128), 8, 128),
    ],
)
def test_numbers_come_back(make: Callable[[], Array], bits: int, block: int) -> None:
    rows = make()
    grid = find_grid(rows, 8)
    assert grid is not None
    assert (grid.bits, grid.block) == (bits, block)
    # Zero is a level of all of these, so operators without offsets hold them, too.
    assert grid.zero != "offset"
    scheme = scheme_of(grid)
    assert np.array_equal(dequantize(ExactGrid().solve(rows, None, scheme), scheme, FEATURES), rows)


def test_products_that_are_rounded_twice_come_back_but_for_that() -> None:
    """bitsandbytes multiplies a level by its scale and the product by 1 / 127; operators by one scale."""
    rows = of_bitsandbytes_int8()
    grid = find_grid(rows, 8)
    assert grid == Grid(8, 128, "none")
    scheme = scheme_of(grid)
    found = dequantize(ExactGrid().solve(rows, None, scheme), scheme, FEATURES)
    assert np.abs(found - rows).max() <= 2.0**-23 * np.abs(rows).max()


def scheme_of(grid: Grid) -> Scheme:
    row = next(s for s in SCHEMES.values() if (s.form, s.bits, s.zero) == ("nbits", grid.bits, grid.zero))
    return Scheme(row.form, row.storage, grid.block, row.zero)


def test_groups_in_the_order_of_activations_are_no_blocks() -> None:
    index = np.random.default_rng(1).permutation(np.arange(FEATURES) // 128)
    assert find_grid(of_gptq(4, 4, index=index), 8) is None
