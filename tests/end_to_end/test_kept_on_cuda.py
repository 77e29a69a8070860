"""Quantized checkpoints as graphs for CUDA: they hold the checkpoint's numbers, and say what its floats say.

ONNX Runtime's CPU provider runs these graphs in the stead of a GPU, for which there is ``tests/gpu/test_kept.py``.
Scales and offsets have the activations' type, so numbers are the checkpoint's within its rounding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.compiler.driver.verification import KL, LOGIT_ERROR, TOP1
from llmc.runtimes.onnxruntime.operator_support import has_input

from ..compiler.checkpoint.quantized.packing import Array
from ..quantized_models import save_quantized
from .tiny import save_model

SIZES = {"hidden_size": 128, "intermediate_size": 160, "max_position_embeddings": 64}
HALF = 2.0**-11
"""Half a unit in the last place of float16, of a number."""

pytestmark = pytest.mark.skipif(
    not has_input("com.microsoft", "GatedRMSNorm", "gate"),
    reason="this ONNX Runtime's CPU provider lacks operators of the CUDA target",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("plain") / "model", **SIZES)


def products(graph: Path) -> dict[str, Array]:
    """What the products of a graph stand for: [out, in] float32 by name."""
    model = onnx.load(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        bits, block = attributes["bits"], attributes["block_size"]
        stem = node.input[1].removesuffix(".packed")
        packed, shape = arrays[node.input[1]], (attributes["N"], -(-attributes["K"] // block))
        levels = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1)
        levels = levels.reshape(*shape, block).astype(np.float32) - zeros(arrays, stem, shape, bits)
        rows = levels * arrays[f"{stem}.scales"].astype(np.float32).reshape(*shape, 1)
        if (offsets := arrays.get(f"{stem}.offsets")) is not None:
            rows += offsets.astype(np.float32).T[..., None] / block
        found[stem] = rows.reshape(shape[0], -1)[:, : attributes["K"]]
    return found


def zeros(arrays: dict[str, Array], stem: str, shape: tuple[int, int], bits: int) -> Array:
    points = arrays.get(f"{stem}.zero_points")
    if points is None:
        return np.full((*shape, 1), 2 ** (bits - 1), np.float32)
    if bits == 4:
        points = np.stack([points & 15, points >> 4], -1)
    return points.reshape(shape[0], -1)[:, : shape[1], None].astype(np.float32)


@pytest.mark.parametrize(
    ("name", "precision", "activations"),
    [
        ("gptq", "int4", "fp16"),
        ("hqq", "int4", "fp16"),
        ("torchao packed", "int4", "fp16"),
        ("hqq 8 bits", "int8", "fp16"),
        ("gptq 8 bits", "int8", "bf16"),
    ],
)
def test_a_graph_for_cuda_holds_the_numbers(
    name: str, precision: str, activations: str, source: Path, tmp_path: Path
) -> None:
    checkpoint, floats = save_quantized(source, tmp_path / "quantized", name)
    runs = activations == "fp16"  # The CPU provider has no kernels for bfloat16.
    options = OptimizeOptions(
        target="cuda", precision=precision, activations=activations, keep_quantization=True, logits="last"
    )
    export = ExportOptions(verify="on" if runs else "off")
    report = compile_model(str(checkpoint), tmp_path / "engine", CompileOptions(export, options))
    held = list(products(tmp_path / "engine" / "model.onnx").values())
    half = HALF if runs else 2.0**-8
    for parameter, values in floats.items():
        if values.ndim < 2 or "embed" in parameter:
            continue
        # A layer of its own, or rows of one with others.
        error = min(
            np.abs(rows[start : start + len(values)] - values).max()
            for rows in held
            if rows.shape[1] == values.shape[1]
            for start in range(0, len(rows) - len(values) + 1, 32)
        )
        assert error < 3 * half * np.abs(values).max(), parameter
    if runs:
        (errors,) = report.manifest.measured.values()
        assert errors[LOGIT_ERROR] < 0.05
        assert errors[KL] < 1e-4
        assert errors[TOP1] > 0.9
