"""ModelOpt's FP8 and NVFP4."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.checkpoint.quantized.layer import Parts
from llmc.compiler.checkpoint.quantized.modelopt import modelopt_layers
from llmc.compiler.checkpoint.quantized.unpacking import E2M1, nibbles
from llmc.compiler.checkpoint.weights import ArrayWeights

E4M3 = ml_dtypes.float8_e4m3fn


def test_layers_of_both_kinds() -> None:
    draws = np.random.default_rng(0)
    codes, packed = draws.normal(0, 30, (8, 32)).astype(E4M3), draws.integers(0, 256, (8, 16)).astype(np.uint8)
    groups, overall = draws.uniform(1, 300, (8, 2)).astype(E4M3), np.float32(0.01)
    tensors = {
        "q.weight": codes,
        "q.weight_scale": np.array(0.25, np.float32),
        "q.input_scale": np.array(1, np.float32),
        "up.weight": packed,
        "up.weight_scale": groups,
        "up.weight_scale_2": np.array(overall),
        "up.input_scale": np.array(1, np.float32),
        "norm.weight": np.ones(8, np.float32),
    }
    q, up = modelopt_layers({"quant_algo": "MIXED_PRECISION"}, Parts(ArrayWeights(tensors)))
    assert np.array_equal(q.rows(1, 7), codes[1:7].astype(np.float32) * np.float32(0.25))
    scale = (groups.astype(np.float32) * overall).repeat(16, axis=1)
    assert np.array_equal(up.rows(0, 8), E2M1[nibbles(packed)] * scale)
    assert (q.name, q.format) == ("q.weight", "ModelOpt float8, one scale")
    assert (up.name, up.format) == ("up.weight", "ModelOpt NVFP4, groups of 16")
    assert {*q.parts, *up.parts} == tensors.keys() - {"norm.weight"}


@pytest.mark.parametrize("algorithm", ["W4A8_AWQ", "", "INT8_SQ"])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    with pytest.raises(UnsupportedModelError, match="quantized by ModelOpt's"):
        modelopt_layers({"quant_algo": algorithm}, Parts(ArrayWeights({})))


def test_scaled_activations_are_refused() -> None:
    tensors = {"q.weight": np.zeros((8, 32), E4M3), "q.pre_quant_scale": np.ones(32, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"q\.pre_quant_scale scales what that layer reads"):
        modelopt_layers({"quant_algo": "NVFP4_AWQ"}, Parts(ArrayWeights(tensors)))
