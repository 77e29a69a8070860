"""HQQ's layers, packed here by their description and, where it is installed, by the package itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.hqq import hqq_layers
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.quantized.open_quantized import open_quantized, stated_quantization
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array, under, write

OUT, FEATURES, SIZE = 24, 64, 32
FIELDS = {8: ("8bit_u8", 1), 4: ("4bit_u8", 2), 3: ("3bit_32", 10), 2: ("2bit_u8", 4), 1: ("1bit_u8", 8)}


def packed(levels: Array, bits: int) -> Array:
    """Words of some rows, one number at a time; rows that are none are zeros."""
    name, count = FIELDS[bits]
    height = -(-len(levels) // count)
    words = np.zeros((height, levels.shape[1]), np.int64)
    for row, numbers in enumerate(levels):
        place, word = divmod(row, height)
        for column, number in enumerate(numbers):
            words[word, column] |= int(number) << (bits * (count - 1 - place))
    return words.astype(np.int32 if name.endswith("32") else np.uint8)


def layer_tensors(bits: int, axis: int, *, name: str = "") -> tuple[dict[str, Array], Array]:
    """The tensors of a layer, and what they stand for."""
    draws = np.random.default_rng(bits + axis)
    groups = OUT * FEATURES // SIZE
    shape, scales = ((groups, SIZE), (groups, 1)) if axis else ((SIZE, groups), (1, groups))
    levels = draws.integers(0, 2**bits, shape)
    zero = draws.uniform(0, 2**bits, scales).astype(np.float16)
    scale = draws.uniform(0.1, 0.2, scales).astype(np.float16)
    values = (levels.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    tensors = {
        "W_q": packed(levels, bits),
        "scale": scale,
        "zero": zero,
        "shape": np.array([OUT, FEATURES]),
        "axis": np.array(axis, np.int32),
        "group_size": np.array(SIZE, np.int32),
        "nbits": np.array(bits, np.int32),
        "packing": np.frombuffer((name or FIELDS[bits][0]).encode(), np.uint8),
        "view_as_float": np.array(0, np.uint8),
        "compute_dtype": np.frombuffer(b"torch.float16", np.uint8),
    }
    return tensors, values.reshape(OUT, FEATURES)


def the_layer(tensors: dict[str, Array]) -> QuantizedLayer:
    bias = {"q.bias": np.zeros(OUT, np.float32)}
    (layer,) = hqq_layers({}, Parts(ArrayWeights({**under("q", tensors), **bias})))
    assert sorted(layer.parts) == sorted(f"q.{name}" for name in tensors)
    return layer


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_values_are_those_of_the_formula(bits: int, axis: int) -> None:
    tensors, values = layer_tensors(bits, axis)
    layer = the_layer(tensors)
    assert (layer.name, layer.shape) == ("q.weight", (OUT, FEATURES))
    assert layer.format == f"HQQ {bits} bits, groups of 32{'' if axis else ' across rows'}"
    assert np.array_equal(layer.rows(0, OUT), values)
    for start, stop in ((0, 1), (3, 4), (5, 19), (OUT - 1, OUT)):
        assert np.array_equal(layer.rows(start, stop), values[start:stop])


@pytest.mark.parametrize("bits", [3, 4])
def test_words_seen_as_floats(bits: int) -> None:
    tensors, values = layer_tensors(bits, 1)
    tensors["W_q"] = tensors["W_q"].view(np.float16)
    assert np.array_equal(the_layer(tensors).rows(2, 9), values[2:9])


def test_another_packing_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"q\.packing says 'marlin', and llmc reads 8bit_u8, 4bit_u8"):
        the_layer(layer_tensors(4, 1, name="marlin")[0])


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("W_q", np.zeros((23, SIZE), np.uint8)),
        ("W_q", np.zeros((24, SIZE), np.int32)),
        ("scale", np.zeros((47, 1), np.float16)),
        ("zero", np.zeros((1, 48), np.float16)),
        ("shape", np.array([OUT, FEATURES, 1])),
        ("shape", np.array([-OUT, -FEATURES])),
        ("group_size", np.array(0, np.int32)),
    ],
)
def test_parts_of_other_shapes(part: str, values: Array) -> None:
    with pytest.raises(CheckpointError, match="do not belong together in the layout of HQQ"):
        the_layer({**layer_tensors(4, 1)[0], part: values})


def test_a_setting_that_is_no_number() -> None:
    with pytest.raises(CheckpointError, match=r"q\.axis is \[2\], and one number was expected"):
        the_layer({**layer_tensors(4, 1)[0], "axis": np.ones(2, np.int32)})


def test_a_part_that_is_missing() -> None:
    tensors, _ = layer_tensors(4, 1)
    del tensors["zero"]
    with pytest.raises(CheckpointError, match=r"q\.zero is not in the checkpoint"):
        the_layer(tensors)


def test_a_checkpoint_is_read_by_its_method(tmp_path: Path) -> None:
    tensors, values = layer_tensors(4, 1)
    stated = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}
    write(tmp_path, under("q", tensors), quantization_config=stated)
    found = stated_quantization(tmp_path, {"quantization_config": stated})
    assert found is not None
    weights = open_quantized(found, SafetensorsWeights(tmp_path))
    assert list(weights.tensors()) == ["q.weight"]
    assert np.array_equal(weights.read("q.weight"), values)


@pytest.mark.producers
@pytest.mark.parametrize(
    ("bits", "axis", "floats"),
    [
        (8, 1, False),
        (6, 1, False),
        (4, 0, False),
        (4, 1, True),
        (3, 0, False),
        (3, 1, True),
        (2, 1, False),
        (1, 0, True),
    ],
)
def test_values_are_those_of_the_package(bits: float, axis: int, floats: bool, tmp_path: Path) -> None:
    """Quantized by it, written as its state, against its own dequantized weight, computed in float32."""
    torch = pytest.importorskip("torch")
    package: Any = pytest.importorskip("hqq.core.quantize")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 80, bias=False)
    config = package.BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis, view_as_float=floats)
    # What it would do to the numbers takes seconds, and does nothing to their layout.
    config["weight_quant_params"]["optimize"] = False
    layer = package.HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")
    state = {f"q.{name}": values.contiguous() for name, values in layer.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (found,) = hqq_layers({}, Parts(SafetensorsWeights(tmp_path)))
    expected = layer.dequantize().float().numpy()
    assert np.array_equal(found.rows(0, 80), expected)
    assert np.array_equal(found.rows(7, 31), expected[7:31])
