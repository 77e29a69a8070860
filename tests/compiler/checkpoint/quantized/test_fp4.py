"""4-bit floats: gpt-oss's experts against transformers' own code, and scales of both kinds."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.fp4 import PackedFloat4, mxfp4_layers
from llmc.compiler.checkpoint.quantized.layer import Parts
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array

VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def value(code: int) -> float:
    return -VALUES[code - 8] if code > 7 else VALUES[code]


def experts(count: int = 3, out: int = 6, groups: int = 2) -> dict[str, Array]:
    draws = np.random.default_rng(0)
    return {
        "experts.gate_up_proj_blocks": draws.integers(0, 256, (count, out, groups, 16)).astype(np.uint8),
        "experts.gate_up_proj_scales": draws.integers(118, 130, (count, out, groups)).astype(np.uint8),
        "experts.gate_up_proj_bias": np.zeros((count, out), np.float32),
    }


def test_experts_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = experts()
    (found,) = mxfp4_layers({}, Parts(ArrayWeights(tensors)))
    blocks, scales = (torch.from_numpy(tensors[f"experts.gate_up_proj_{part}"]) for part in ("blocks", "scales"))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    assert (found.name, found.shape) == ("experts.gate_up_proj", (3, 64, 6))
    assert found.shape == theirs.shape
    assert np.array_equal(found.rows(0, 3), theirs)
    assert np.array_equal(found.rows(1, 2), theirs[1:2])
    assert found.format == "MXFP4, groups of 32"


@pytest.mark.parametrize("how", ["times", "over"])
def test_values_are_those_of_the_formula(how: str) -> None:
    import ml_dtypes

    draws = np.random.default_rng(0)
    packed = draws.integers(0, 256, (5, 24)).astype(np.uint8)
    scales = draws.uniform(1, 300, (5, 3)).astype(ml_dtypes.float8_e4m3fn)
    overall = np.array([0.003], np.float32)
    parts = Parts(ArrayWeights({"p": packed, "s": scales, "o": overall}))
    found = PackedFloat4(parts, "w", "p", "s", "some NVFP4", overall=("o", how))  # type: ignore[arg-type]
    expected = np.empty((5, 48), np.float32)
    for row in range(5):
        for column in range(48):
            byte = int(packed[row, column // 2])
            code = byte >> 4 if column % 2 else byte & 15
            scale = np.float32(scales[row, column // 16])
            scale = scale * overall[0] if how == "times" else scale / overall[0]
            expected[row, column] = np.float32(value(code)) * scale
    assert np.array_equal(found.rows(0, 5), expected)
    assert np.array_equal(found.rows(2, 4), expected[2:4])
    assert (found.shape, found.format) == ((5, 48), "some NVFP4, groups of 16")


def test_scales_of_another_shape() -> None:
    tensors = experts()
    tensors["experts.gate_up_proj_scales"] = tensors["experts.gate_up_proj_scales"][:, :5]
    with pytest.raises(CheckpointError, match="layout of gpt-oss"):
        mxfp4_layers({}, Parts(ArrayWeights(tensors)))
    arrays = {"p": np.zeros((5, 24), np.uint8), "s": np.ones((4, 3), np.float32)}
    with pytest.raises(CheckpointError, match="do not belong together"):
        PackedFloat4(Parts(ArrayWeights(arrays)), "w", "p", "s", "some")
