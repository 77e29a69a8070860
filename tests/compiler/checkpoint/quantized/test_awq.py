"""AWQ's layouts, against packing by hand and, where it is installed, AutoAWQ's own code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.awq import awq_layers
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array, awq, draw, expand, pack, under

OUT, FEATURES, GROUPS = 64, 96, 3


def the_layer(tensors: dict[str, Array], **config: Any) -> QuantizedLayer:
    (found,) = awq_layers(config, Parts(ArrayWeights(under("q", tensors))))
    assert (found.name, found.shape) == ("q.weight", (OUT, FEATURES))
    assert found.format == "AWQ int4, groups of 32"
    return found


def test_gemm_values_are_those_of_the_formula() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, 4)
    found, whole = the_layer(awq(levels, zeros, scales), bits=4, version="gemm"), expand(levels, zeros, scales)
    assert np.array_equal(found.rows(0, OUT), whole)
    # Rows that begin and end within a word.
    assert np.array_equal(found.rows(5, 23), whole[5:23])


def test_gemv_values_are_those_of_the_formula() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, 4)
    padding = ((0, 0), (0, 5))
    tensors = {
        "qweight": pack(levels, 4),
        "qzeros": pack(np.pad(zeros, padding), 4),
        "scales": np.pad(scales, padding),
    }
    found = the_layer(tensors, w_bit=4, version="GEMV", q_group_size=32)
    assert np.array_equal(found.rows(3, 41), expand(levels, zeros, scales)[3:41])


def test_values_are_those_of_autoawq() -> None:
    """Its module of packing alone: the package itself wants a GPU's kernels."""
    torch = pytest.importorskip("torch")
    path = next((p for p in (Path(entry, "awq/utils/packing_utils.py") for entry in sys.path) if p.is_file()), None)
    if path is None:
        pytest.skip("AutoAWQ is not installed")
    spec = importlib.util.spec_from_file_location("packing_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draws = np.random.default_rng(3)
    weight = draws.integers(-(2**31), 2**31, (FEATURES, OUT // 8)).astype(np.int32)
    zeros = draws.integers(-(2**31), 2**31, (GROUPS, OUT // 8)).astype(np.int32)
    scales = draws.uniform(0.01, 0.02, (GROUPS, OUT)).astype(np.float16)
    tensors = (torch.from_numpy(values) for values in (weight, zeros, scales.astype(np.float32)))
    theirs = module.dequantize_gemm(*tensors, 4, 32).T.numpy()
    found = the_layer({"qweight": weight, "qzeros": zeros, "scales": scales}, bits=4)
    assert np.array_equal(found.rows(0, OUT), theirs)


@pytest.mark.parametrize("stated", [{"bits": 3}, {"version": "gemv_fast"}, {"version": "llm-awq"}])
def test_other_layouts_are_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="in the layouts gemm and gemv"):
        awq_layers(stated, Parts(ArrayWeights({})))


@pytest.mark.parametrize("version", ["gemm", "gemv"])
def test_parts_of_another_shape(version: str) -> None:
    tensors = awq(*draw(OUT, FEATURES, GROUPS, 4))
    with pytest.raises(CheckpointError, match="do not belong together"):
        the_layer({**tensors, "scales": tensors["scales"][:, 1:]}, version=version, group_size=32)
