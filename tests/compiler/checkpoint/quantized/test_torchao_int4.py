"""torchao's packed integers of 4 bits.

Tensors are packed here by the descriptions of torchao, mslk and PyTorch's kernel, one number at a time: their own
packing runs on a GPU alone. What levels stand for is compared with torchao's arithmetic where it is installed.
"""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.quantized.torchao import torchao_layers
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array

OUT, FEATURES, SIZE = 20, 160, 32
PADDED_OUT, PADDED = 24, 256
PLAIN, TILED, WORDS = "Int4Tensor", "Int4TilePackedTo4dTensor", "Int4PlainInt32Tensor"


def numbers(out: int, features: int) -> tuple[Array, Array, Array]:
    """Levels 0 … 15, scales and zero points bfloat16 [out, groups]."""
    draws = np.random.default_rng(0)
    shape = (out, features // SIZE)
    scales, zeros = (draws.uniform(*ends, shape).astype(ml_dtypes.bfloat16) for ends in ((0.1, 0.2), (-0.3, 0.3)))
    return draws.integers(0, 16, (out, features)), scales, zeros


def values(levels: Array, scales: Array, zeros: Array) -> Array:
    spread = [part.astype(np.float32).repeat(SIZE, axis=1) for part in (scales, zeros)]
    floats: Array = (levels - 8).astype(np.float32) * spread[0] + spread[1]
    return floats


def plain() -> tuple[dict[str, Array], Array]:
    """Bytes with the first level, as a signed number, in the low four bits; scales by group."""
    levels, scales, zeros = numbers(OUT, FEATURES)
    data = np.zeros((OUT, FEATURES // 2), np.uint8)
    for row, column in np.ndindex(levels.shape):
        data[row, column // 2] |= ((int(levels[row, column]) - 8) & 15) << (4 * (column % 2))
    tensors = {
        "q._weight_qdata": data.view(np.int8),
        "q._weight_scale": np.ascontiguousarray(scales.T),
        "q._weight_zero_point": np.ascontiguousarray(zeros.T),
    }
    return tensors, values(levels, scales, zeros)


def words() -> tuple[dict[str, Array], Array]:
    """Words with the first level in the lowest four bits; scales by group, zero points whole numbers."""
    levels, scales, _ = numbers(OUT, FEATURES)
    zeros = np.random.default_rng(1).integers(0, 16, scales.shape).astype(np.int8)
    data = np.zeros((OUT, FEATURES // 8), np.uint32)
    for row, column in np.ndindex(levels.shape):
        data[row, column // 8] |= np.uint32(int(levels[row, column]) << (4 * (column % 8)))
    tensors = {
        "q._weight_qdata": data.view(np.int32),
        "q._weight_scale": np.ascontiguousarray(scales.T),
        "q._weight_zero_point": np.ascontiguousarray(zeros.T),
    }
    spread = [part.astype(np.float32).repeat(SIZE, axis=1) for part in (scales, zeros)]
    return tensors, (levels - spread[1]).astype(np.float32) * spread[0]


def tiled(inner: int = 8) -> tuple[dict[str, Array], Array]:
    """As the kernel packs: for each lane and pair of tiles the eight levels that it loads, into one word."""
    levels, scales, zeros = numbers(PADDED_OUT, PADDED)
    words = np.zeros((PADDED_OUT // 8, PADDED // (inner * 16), 32, inner // 2), np.uint32)
    for tall, wide, lane, pair in np.ndindex(words.shape):
        base = (wide * inner + 2 * pair) * 16
        first = base + (lane % 4) * 2
        loaded = [first, first + 1, first + 8, first + 9, *(first + 16 + step for step in (0, 1, 8, 9))]
        v = [int(levels[tall * 8 + lane // 4, feature]) for feature in loaded]
        word = 0
        for number in (v[7], v[5], v[3], v[1], v[6], v[4], v[2], v[0]):
            word = word << 4 | number
        words[tall, wide, lane, pair] = word
    pairs = np.stack([scales.T, zeros.T], -1)
    tensors = {"q._weight_qdata": words.view(np.int32), "q._weight_scale_and_zero": np.ascontiguousarray(pairs)}
    return tensors, values(levels, scales, zeros)[:OUT, :FEATURES]


def the_layer(tensors: dict[str, Array], kind: str, **stated: Any) -> QuantizedLayer:
    data = {"block_size": [1, SIZE], "shape": [OUT, FEATURES], **stated}
    metadata = {"q.weight": json.dumps({"_type": kind, "_data": data})}
    (layer,) = torchao_layers({}, Parts(ArrayWeights(tensors), metadata))
    assert set(layer.parts) == tensors.keys()
    return layer


ALL = [(plain, PLAIN), (tiled, TILED), (words, WORDS)]


@pytest.mark.parametrize(("make", "kind"), ALL)
def test_values_are_those_of_the_formula(make: Any, kind: str) -> None:
    tensors, expected = make()
    layer = the_layer(tensors, kind)
    assert (layer.name, layer.shape) == ("q.weight", (OUT, FEATURES))
    assert layer.format == f"torchao int4{ {TILED: ' in tiles', WORDS: ' in words'}.get(kind, '') }, groups of 32"
    assert np.array_equal(layer.rows(0, OUT), expected)
    for start, stop in ((0, 1), (7, 9), (3, 17), (OUT - 1, OUT)):
        assert np.array_equal(layer.rows(start, stop), expected[start:stop])


@pytest.mark.parametrize("inner", [2, 4])
def test_words_of_other_numbers_of_tiles(inner: int) -> None:
    tensors, expected = tiled(inner)
    assert np.array_equal(the_layer(tensors, TILED).rows(0, OUT), expected)


@pytest.mark.producers
def test_arithmetic_of_words_is_the_packages() -> None:
    torch = pytest.importorskip("torch")
    primitives: Any = pytest.importorskip("torchao.quantization.quant_primitives")
    tensors, _ = words()
    levels, _, _ = numbers(OUT, FEATURES)
    scales = torch.from_numpy(tensors["q._weight_scale"].T.astype(np.float32))
    zeros = torch.from_numpy(tensors["q._weight_zero_point"].T.astype(np.int32))
    expected = primitives.dequantize_affine(
        torch.from_numpy(levels.astype(np.int32)), (1, SIZE), scales, zeros, torch.int32, 0, 15
    )
    assert np.array_equal(the_layer(tensors, WORDS).rows(0, OUT), expected.numpy())


def test_words_for_an_npu_are_refused() -> None:
    tensors, _ = words()
    zeros = tensors["q._weight_zero_point"].astype(np.float16)
    with pytest.raises(UnsupportedModelError, match=r"the kernel of an NPU \(q\._weight_zero_point is FLOAT16\)"):
        the_layer({**tensors, "q._weight_zero_point": zeros}, WORDS)


@pytest.mark.producers
def test_arithmetic_is_the_packages() -> None:
    torch = pytest.importorskip("torch")
    primitives: Any = pytest.importorskip("torchao.quantization.quant_primitives")
    tensors, _ = tiled()
    levels, scales, zeros = numbers(PADDED_OUT, PADDED)
    floats = [torch.from_numpy(part.astype(np.float32)) for part in (scales, zeros)]
    expected = primitives._dequantize_affine_tinygemm(
        torch.from_numpy(levels.astype(np.int32)), (1, SIZE), *floats, torch.int32, 0, 15, output_dtype=torch.float32
    )
    found = the_layer(tensors, TILED).rows(0, OUT)
    assert np.array_equal(found, expected.numpy()[:OUT, :FEATURES])


@pytest.mark.parametrize(
    ("make", "kind", "part", "other"),
    [
        (plain, PLAIN, "scale", np.zeros((5, OUT + 1), np.float32)),
        (plain, PLAIN, "zero_point", np.zeros((4, OUT), np.float32)),
        (plain, PLAIN, "qdata", np.zeros((OUT, 80), np.int32)),
        (plain, PLAIN, "scale", np.zeros((0, OUT), np.float32)),
        (plain, PLAIN, "scale", np.float32(1)),
        (words, WORDS, "scale", np.zeros((5, OUT + 1), np.float32)),
        (words, WORDS, "zero_point", np.zeros((4, OUT), np.int8)),
        (words, WORDS, "qdata", np.zeros((OUT, 20), np.int8)),
        (tiled, TILED, "qdata", np.zeros((2, 2, 32, 4), np.int32)),
        (tiled, TILED, "qdata", np.zeros((3, 2, 16, 4), np.int32)),
        (tiled, TILED, "scale_and_zero", np.zeros((4, 24, 2), np.float32)),
    ],
)
def test_parts_that_do_not_belong_together(make: Any, kind: str, part: str, other: Array) -> None:
    tensors, _ = make()
    with pytest.raises(CheckpointError, match="do not belong together in torchao's layout"):
        the_layer({**tensors, f"q._weight_{part}": other}, kind)


@pytest.mark.parametrize(("make", "kind"), ALL)
def test_stacks_are_refused(make: Any, kind: str) -> None:
    tensors, _ = make()
    stacked = {name: part[None] for name, part in tensors.items()}
    with pytest.raises(UnsupportedModelError, match="is no matrix"):
        the_layer(stacked, kind, shape=[1, OUT, FEATURES])


@pytest.mark.parametrize("shape", [None, [], "20", [20, "160"]])
def test_a_shape_that_is_not_said(shape: object) -> None:
    with pytest.raises(CheckpointError, match="do not say what shape"):
        the_layer(tiled()[0], TILED, shape=shape)


@pytest.mark.parametrize(("make", "kind"), ALL)
def test_scaled_activations_are_refused(make: Any, kind: str) -> None:
    tensors, _ = make()
    with pytest.raises(UnsupportedModelError, match="what the layer reads is scaled"):
        the_layer({**tensors, "q._weight_act_pre_scale": np.ones(1, np.float32)}, kind)
