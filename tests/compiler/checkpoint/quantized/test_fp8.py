"""8-bit floats and integers with scales of any shape."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.fp8 import CodedMatrix, fine_grained_layers
from llmc.compiler.checkpoint.quantized.layer import Parts
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array

E4M3 = ml_dtypes.float8_e4m3fn


def codes(*shape: int, dtype: type = E4M3) -> Array:
    return np.random.default_rng(0).normal(0, 30, shape).astype(dtype)


def scales(*shape: int) -> Array:
    return np.random.default_rng(1).uniform(0.001, 0.002, shape).astype(np.float32)


def test_blocks_that_end_within_the_matrix() -> None:
    """300 rows are three blocks of 128, which their number alone would not say."""
    weight, inverse = codes(300, 200), scales(3, 2)
    parts = Parts(ArrayWeights({"q.weight": weight, "q.weight_scale_inv": inverse, "q.activation_scale": scales()}))
    (found,) = fine_grained_layers({"weight_block_size": [128, 128]}, parts)
    expected = np.empty((300, 200), np.float32)
    for row in range(300):
        for column in range(200):
            expected[row, column] = np.float32(weight[row, column]) * inverse[row // 128, column // 128]
    assert np.array_equal(found.rows(0, 300), expected)
    assert np.array_equal(found.rows(120, 260), expected[120:260])
    assert found.format == "fine-grained float8, blocks of 128 x 128"
    assert set(found.parts) == {"q.weight", "q.weight_scale_inv", "q.activation_scale"}


def test_a_stack_of_experts() -> None:
    weight, inverse = codes(3, 64, 96), scales(3, 2, 3)
    parts = Parts(ArrayWeights({"gate_up_proj": weight, "gate_up_proj_scale_inv": inverse}))
    (found,) = fine_grained_layers({"weight_block_size": [32, 32]}, parts)
    spread = inverse.repeat(32, axis=1).repeat(32, axis=2)
    assert np.array_equal(found.rows(1, 3), weight[1:].astype(np.float32) * spread[1:])


@pytest.mark.parametrize("shape", [(), (1,), (64,), (64, 1), (64, 3), (2, 3)])
def test_the_shape_of_scales_says_what_shares_one(shape: tuple[int, ...]) -> None:
    weight, factor = codes(64, 96), scales(*shape)
    found = CodedMatrix(Parts(ArrayWeights({"w": weight, "s": factor})), "w", "s", None, "some")
    square = factor.reshape(shape if len(shape) == 2 else (-1, 1))
    spread = square.repeat(64 // len(square), axis=0).repeat(96 // square.shape[1], axis=1)
    assert np.array_equal(found.rows(0, 64), weight.astype(np.float32) * spread)
    assert np.array_equal(found.rows(30, 40), weight[30:40].astype(np.float32) * spread[30:40])


def test_integers_with_zero_points() -> None:
    weight, factor = codes(64, 96, dtype=np.int8), scales(64, 1)
    zeros = np.arange(64, dtype=np.int8)[:, None]
    parts = Parts(ArrayWeights({"w": weight, "s": factor, "z": zeros}))
    found = CodedMatrix(parts, "w", "s", None, "some", zeros="z")
    assert np.array_equal(found.rows(7, 9), (weight.astype(np.int32) - zeros)[7:9].astype(np.float32) * factor[7:9])
    assert found.format == "some int8, a scale a row"


def test_scales_that_are_exponents() -> None:
    weight, exponents = codes(4, 64), np.array([[127, 120], [130, 1], [127, 127], [0, 127]], np.uint8)
    found = CodedMatrix(Parts(ArrayWeights({"w": weight, "s": exponents})), "w", "s", None, "some")
    factor = np.array([[1, 2.0**-7], [8, 2.0**-126], [1, 1], [2.0**-127, 1]], np.float32).repeat(32, axis=1)
    assert np.array_equal(found.rows(0, 4), weight.astype(np.float32) * factor)


@pytest.mark.parametrize("shape", [(5,), (3, 7), (64, 5)])
def test_scales_of_no_shape_that_fits(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="does not belong to w"):
        CodedMatrix(Parts(ArrayWeights({"w": codes(64, 96), "s": scales(*shape)})), "w", "s", None, "some")


def test_codes_that_are_floats() -> None:
    with pytest.raises(CheckpointError, match="w is FLOAT"):
        CodedMatrix(Parts(ArrayWeights({"w": scales(64, 96), "s": scales(64)})), "w", "s", None, "some")


def test_transformers_gives_the_same_values() -> None:
    """Its own formula, run on the CPU."""
    torch = pytest.importorskip("torch")
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    weight, inverse = codes(256, 384), scales(2, 3)
    parts = Parts(ArrayWeights({"q.weight": weight, "q.weight_scale_inv": inverse}))
    (found,) = fine_grained_layers({"weight_block_size": [128, 128]}, parts)
    stored = torch.from_numpy(weight.view(np.uint8)).view(torch.float8_e4m3fn)
    theirs = _dequantize_fp8_weight(stored, torch.from_numpy(inverse), [128, 128], torch.float32)
    assert np.array_equal(found.rows(0, 256), theirs.numpy())
