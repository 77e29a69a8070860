"""Where a checkpoint says that it is quantized, and its tensors as floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.open_quantized import open_quantized, stated_quantization
from llmc.compiler.checkpoint.quantized.quantized_weights import QuantizedWeights
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights

from .packing import Array, awq, draw, expand, gptq, under, write

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
NUMBERS = draw(64, 96, 3, 4)


def opened(directory: Path) -> QuantizedWeights:
    config = json.loads((directory / "config.json").read_text())
    stated = stated_quantization(directory, config)
    assert stated is not None
    weights = open_quantized(stated, SafetensorsWeights(directory))
    assert isinstance(weights, QuantizedWeights)
    return weights


def tensors(**more: Array) -> dict[str, Array]:
    return {**under("q", gptq(*NUMBERS, 4)), "q.bias": np.arange(64, dtype=np.float16), **more}


def test_quantized_weights_read_as_floats_and_others_as_they_are(tmp_path: Path) -> None:
    weights = opened(write(tmp_path, tensors(**{"a.k_scale": np.ones(1, np.float32)}), quantization_config=GPTQ))
    assert list(weights.tensors()) == ["q.bias", "q.weight"]
    info = weights.tensors()["q.weight"]
    assert (info.dtype.name, info.shape, info.stored_type) == ("FLOAT", (64, 96), "GPTQ int4, groups of 32")
    assert info.stored_bytes == 64 * 96 // 2 + 3 * 64 // 2 + 2 * 3 * 64 + 4 * 96
    assert np.array_equal(weights.read("q.weight"), expand(*NUMBERS))
    assert np.array_equal(weights.read("q.weight", 60, 99), expand(*NUMBERS)[60:])
    assert weights.read("q.weight", 9, 9).shape == (0, 96)
    assert np.array_equal(weights.read("q.bias", 2, 4), [2, 3])
    assert weights.formats() == {"GPTQ int4, groups of 32": 1}
    assert [path.name for path in weights.files] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("config", "name", "side", "method"),
    [
        ({"quantization_config": GPTQ}, "", {}, "gptq"),
        ({"text_config": {"quantization_config": GPTQ}}, "", {}, "gptq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "", {}, "compressed-tensors"),
        ({"quantization_config": {"config_groups": {}}}, "", {}, "compressed-tensors"),
        ({"quantization_config": {"quant_algo": "FP8"}}, "", {}, "modelopt"),
        ({}, "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "modelopt"),
        ({}, "quantize_config.json", {"bits": 4}, "gptq"),
        ({}, "quant_config.json", {"w_bit": 4}, "awq"),
    ],
)
def test_where_it_is_said(tmp_path: Path, config: dict[str, Any], name: str, side: Any, method: str) -> None:
    if name:
        (tmp_path / name).write_text(json.dumps(side))
    stated = stated_quantization(tmp_path, config)
    assert stated is not None
    assert stated.method == method
    assert stated.file.name == (name or "config.json")
    assert not name or stated.settings == side.get("quantization", side)


def test_nothing_is_said(tmp_path: Path) -> None:
    assert stated_quantization(tmp_path, {"quantization_config": None, "text_config": {}}) is None


@pytest.mark.parametrize(("packing", "make"), [("auto_round:auto_gptq", gptq), ("auto_round:auto_awq", awq)])
def test_auto_round_writes_the_layouts_of_others(tmp_path: Path, packing: str, make: Any) -> None:
    parts = gptq(*NUMBERS, 4) if make is gptq else awq(*NUMBERS)
    stated = {"quant_method": "auto-round", "packing_format": packing, "bits": 4}
    weights = opened(write(tmp_path, under("q", parts), quantization_config=stated))
    assert np.array_equal(weights.read("q.weight"), expand(*NUMBERS))


def test_a_side_file_belongs_to_the_weights(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert [path.name for path in opened(tmp_path).files] == ["model.safetensors", "quantize_config.json"]


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_side_file_of_other_weights_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """It was left there when the weights were made floats."""
    write(tmp_path, {"q.weight": np.ones((4, 4), np.float32)})
    (tmp_path / name).write_text('{"bits": 4, "quant_algo": "FP8"}')
    stated = stated_quantization(tmp_path, {})
    assert stated is not None
    stored = SafetensorsWeights(tmp_path)
    assert open_quantized(stated, stored) is stored
    assert name in caplog.text


def test_a_cache_in_small_numbers_is_no_quantized_weight(tmp_path: Path) -> None:
    stated = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    assert stated_quantization(tmp_path, {}) is None


def test_what_is_said_and_is_not(tmp_path: Path) -> None:
    write(tmp_path, {"q.weight": np.ones((4, 4), np.float32)}, quantization_config=GPTQ)
    with pytest.raises(CheckpointError, match=r"says that weights are quantized \(gptq\), and no tensor is"):
        opened(tmp_path)


def test_a_weight_that_is_there_twice(tmp_path: Path) -> None:
    write(tmp_path, tensors(**{"q.weight": np.ones((64, 96), np.float32)}), quantization_config=GPTQ)
    with pytest.raises(CheckpointError, match=r"q\.weight is in the checkpoint twice"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "quark"}, "quark"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"}, "auto-round auto_round:llm"),
        ("awq", "unknown"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, stated: Any, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"quantized already \({name}"):
        stated_quantization(tmp_path, {"quantization_config": stated})


def test_a_side_file_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json is not a JSON object"):
        stated_quantization(tmp_path, {})
