"""torchao's tensors, by their formula and, where it is installed, against the package itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Parts
from llmc.compiler.checkpoint.quantized.open_quantized import open_quantized, stated_quantization
from llmc.compiler.checkpoint.quantized.torchao import torchao_layers
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array


def tensors() -> dict[str, Array]:
    draws = np.random.default_rng(0)
    return {
        "q._weight_qdata": draws.integers(-8, 8, (12, 64)).astype(np.int8),
        "q._weight_scale": draws.uniform(0.1, 0.2, (12, 2)).astype(np.float32),
        "q._weight_zero_point": draws.integers(-8, 8, (12, 2)).astype(np.int8),
    }


def metadata(kind: str) -> dict[str, str]:
    return {"q.weight": json.dumps({"_type": kind})}


def test_values_are_those_of_the_formula() -> None:
    stored = tensors()
    (found,) = torchao_layers({}, Parts(ArrayWeights(stored), metadata("IntxUnpackedToInt8Tensor")))
    codes, scales, zeros = stored.values()
    spread = [part.astype(np.float32).repeat(32, axis=1) for part in (scales, zeros)]
    assert np.array_equal(found.rows(2, 9), ((codes - spread[1]) * spread[0])[2:9])
    assert (found.name, found.format) == ("q.weight", "torchao int8, groups of 32")
    assert set(found.parts) == stored.keys()


@pytest.mark.parametrize("kind", ["Int4PreshuffledTensor", "IntxOpaqueTensor", ""])
def test_other_classes_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"its class is {kind or 'not said'}"):
        torchao_layers({}, Parts(ArrayWeights(tensors()), metadata(kind)))


def test_scaled_activations_are_refused() -> None:
    stored = {**tensors(), "q._weight_act_pre_scale": np.ones(64, np.float32)}
    with pytest.raises(UnsupportedModelError, match="what the layer reads is scaled"):
        torchao_layers({}, Parts(ArrayWeights(stored), metadata("Int8Tensor")))


@pytest.mark.producers
@pytest.mark.parametrize("kind", ["int8", "int4", "float8"])
def test_values_are_those_of_the_package(kind: str, tmp_path: Path) -> None:
    """Quantized, flattened and written as transformers does."""
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("torchao.quantization")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    from safetensors.torch import save_file

    configs: dict[str, Any] = {
        "int8": lambda: quantization.Int8WeightOnlyConfig(version=2),
        "int4": lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(32), version=2
        ),
        "float8": quantization.Float8WeightOnlyConfig,
    }
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 64, bias=False))
    quantization.quantize_(model, configs[kind]())
    flat, stated = support.flatten_tensor_state_dict({"0.weight": model[0].weight.data})
    save_file(flat, tmp_path / "model.safetensors", metadata=stated)
    found = stated_quantization(tmp_path, {"quantization_config": {"quant_method": "torchao"}})
    assert found is not None
    weights = open_quantized(found, SafetensorsWeights(tmp_path))
    assert np.array_equal(weights.read("0.weight"), model[0].weight.dequantize().float().numpy())
