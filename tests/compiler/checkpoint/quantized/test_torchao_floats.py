"""torchao's floats in blocks, one number at a time, and against the package where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.quantized.open_quantized import open_quantized, stated_quantization
from llmc.compiler.checkpoint.quantized.torchao import torchao_layers
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array

# More than one tile of scales both ways, the last ones in part.
OUT, FEATURES = 150, 192
CODES = "q._weight_qdata"
VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu


def dtype(name: str) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": name}


# By format: the class, what the file states, the type of an element that is no pair, the type of scales.
CASES: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "NVFP4": ("NVFP4Tensor", {"block_size": 16}, None, E4M3),
    "MXFP4": ("MXTensor", {"block_size": 32, "elem_dtype": dtype("float4_e2m1fn_x2")}, None, E8M0),
    "MXFP8": ("MXTensor", {"block_size": 32, "elem_dtype": dtype("float8_e4m3fn")}, E4M3, E8M0),
    "MXFP8 (E5M2)": ("MXTensor", {"block_size": 32, "elem_dtype": dtype("float8_e5m2")}, E5M2, E8M0),
}


def swizzle(scales: Array) -> Array:
    """In tiles of 128 rows and 4 columns, row ``q * 32 + p`` and column ``c`` of a tile at ``[p, q, c]``."""
    height, width = scales.shape
    tall, wide = -(-height // 128), -(-width // 4)
    stored = np.zeros((tall, wide, 32, 4, 4), scales.dtype)
    for row, column in np.ndindex(scales.shape):
        inside = row % 128
        stored[row // 128, column // 4, inside % 32, inside // 32, column % 4] = scales[row, column]
    return stored.reshape(tall * 32, wide * 16)


def tensors(form: str, *, overall: float | None = None, swizzled: bool = False) -> tuple[dict[str, Array], Array]:
    """The stored tensors, and what they stand for."""
    _, stated, element, scale_type = CASES[form]
    draws, groups = np.random.default_rng(0), FEATURES // stated["block_size"]
    if element is None:
        codes = draws.integers(0, 256, (OUT, FEATURES // 2)).astype(np.uint8)
        pairs = [(byte & 15, byte >> 4) for byte in codes.reshape(-1).tolist()]
        signed = [-VALUES[code - 8] if code > 7 else VALUES[code] for pair in pairs for code in pair]
        values = np.array(signed, np.float32).reshape(OUT, FEATURES)
    else:
        codes = draws.normal(0, 3, (OUT, FEATURES)).astype(element)
        values = codes.astype(np.float32)
    drawn = (
        draws.uniform(1, 300, (OUT, groups)) if scale_type is E4M3 else 2.0 ** draws.integers(-9, 2, (OUT, groups))
    )
    scales = drawn.astype(scale_type)
    spread = scales.astype(np.float32) * np.float32(1 if overall is None else overall)
    stored = {CODES: codes, "q._weight_scale": swizzle(scales) if swizzled else scales}
    if overall is not None:
        stored["q._weight_per_tensor_scale"] = np.array(overall, np.float32)
    return stored, values * spread.repeat(stated["block_size"], axis=1)


def the_layer(stored: dict[str, Array], form: str, **stated: Any) -> QuantizedLayer:
    kind, usual, *_ = CASES[form]
    metadata = {"q.weight": json.dumps({"_type": kind, "_data": {**usual, **stated}})}
    (layer,) = torchao_layers({}, Parts(ArrayWeights(stored), metadata))
    return layer


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("form", CASES)
def test_values_are_those_of_the_formula(form: str, swizzled: bool) -> None:
    stored, expected = tensors(form, overall=0.013 if form == "NVFP4" else None, swizzled=swizzled)
    layer = the_layer(stored, form, is_swizzled_scales=swizzled)
    assert (layer.name, layer.shape) == ("q.weight", (OUT, FEATURES))
    assert layer.format == f"torchao {form}, groups of {CASES[form][1]['block_size']}"
    assert set(layer.parts) == stored.keys()
    assert np.array_equal(layer.rows(0, OUT), expected)
    for start, stop in ((0, 1), (7, 9), (100, 131), (128, OUT), (3, 3)):
        assert np.array_equal(layer.rows(start, stop), expected[start:stop])


def test_a_scale_for_all_need_not_be_there_and_one_of_activations_is_not_needed() -> None:
    stored, expected = tensors("NVFP4")
    scale = {"q._weight_act_per_tensor_scale": np.array(0.5, np.float32)}
    layer = the_layer({**stored, **scale}, "NVFP4")
    assert np.array_equal(layer.rows(0, OUT), expected)
    assert set(layer.parts) == {*stored, *scale}


@pytest.mark.parametrize("element", ["fp6_e2m3", dtype("int8"), None])
def test_other_elements_are_refused(element: object) -> None:
    said = element["_data"] if isinstance(element, dict) else element
    with pytest.raises(UnsupportedModelError, match=rf"elements that llmc does not read \({said}; it reads float4"):
        the_layer(tensors("MXFP8")[0], "MXFP8", elem_dtype=element)


def test_stacks_are_refused() -> None:
    stacked = {name: part[None] for name, part in tensors("NVFP4")[0].items()}
    with pytest.raises(UnsupportedModelError, match="_weight_qdata is no matrix"):
        the_layer(stacked, "NVFP4")


@pytest.mark.parametrize(
    ("part", "other", "stated"),
    [
        ("scale", np.zeros((OUT, 11), E4M3), {}),
        ("qdata", np.zeros((OUT, FEATURES // 2), np.int8), {}),
        ("scale", np.zeros((OUT, 12), E4M3), {"is_swizzled_scales": True}),
        ("scale", np.zeros((OUT, 12), E4M3), {"block_size": 0}),
        ("scale", np.zeros((OUT, 12), E4M3), {"block_size": "16"}),
        ("scale", np.zeros((OUT, 12), E4M3), {"block_size": 36}),
    ],
)
def test_parts_that_do_not_belong_together(part: str, other: Array, stated: dict[str, Any]) -> None:
    stored, _ = tensors("NVFP4")
    with pytest.raises(CheckpointError, match=r"do not belong together in torchao's layout .* in NVFP4"):
        the_layer({**stored, f"q._weight_{part}": other}, "NVFP4", **stated)


@pytest.mark.producers
@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("form", CASES)
def test_values_are_those_of_the_package(form: str, swizzled: bool, tmp_path: Path) -> None:
    """Quantized, flattened and written as transformers does."""
    torch = pytest.importorskip("torch")
    mx: Any = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    nvfp4: Any = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    floats = torch.randn(OUT, FEATURES)
    if form == "NVFP4":
        scale = torch.tensor(0.0021)
        weight = nvfp4.NVFP4Tensor.to_nvfp4(floats, per_tensor_scale=scale, is_swizzled_scales=swizzled)
    else:
        element = getattr(torch, CASES[form][1]["elem_dtype"]["_data"])
        weight = mx.MXTensor.to_mx(floats, element, 32, is_swizzled_scales=swizzled)
    flat, stated = support.flatten_tensor_state_dict({"0.weight": weight})
    save_file(flat, tmp_path / "model.safetensors", metadata=stated)
    found = stated_quantization(tmp_path, {"quantization_config": {"quant_method": "torchao"}})
    assert found is not None
    weights = open_quantized(found, SafetensorsWeights(tmp_path))
    assert np.array_equal(weights.read("0.weight"), weight.dequantize(torch.float32).numpy())
