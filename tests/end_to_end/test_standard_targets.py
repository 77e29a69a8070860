"""Graphs of ONNX's own operators: what OpenVINO and TensorRT are given says what the model says, on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.base.options import ExportOptions, OptimizeOptions, Precision
from llmc.compiler.base.targets import TargetName, get_target
from llmc.compiler.driver.driver import export, optimize
from llmc.runtimes.engines import open_session

from ..shared import Shared
from .conftest import BOTH, Built
from .oracle import THREADS, PortableGraph, Row, lead_graph, lead_session, load_eager, reference_row
from .tiny import SIZES, save_rounded, shared_model, shared_portable

PROMPTS, CHUNKS, DECODED = (41, 5, 23), (0, 7, 32), 32
"""Tokens of each row, tokens of a chunk (0: all at once), and tokens that are decoded one by one."""
FP32, FP16 = 1e-5, 5e-3
"""Largest error, in units of the largest logit. Measured: 2e-6 at most in float32; 1.6e-3 in float16, whose eleven
bits round every weight and activation by up to 5e-4."""
FOUR_BITS = {ir.DataType.INT4, ir.DataType.UINT4}


@dataclass(frozen=True)
class Architecture:
    """A tiny model, and the layers whose attention the operator cannot compute by itself."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    spelled_out: bool = False


GEMMA2 = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
GPT_OSS = {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
GPT_OSS |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
DENSE = {
    "llama, tied": Architecture("llama", {"tie_word_embeddings": True}),
    "qwen3: norms by head": Architecture("qwen3", {"head_dim": 32}),
    "gemma2: softcaps, a window": Architecture("gemma2", GEMMA2, spelled_out=True),
    "bloom: ALiBi": Architecture("bloom", {"n_layer": 2, "n_head": 4}),
}
EXPERTS = {
    "mixtral": Architecture("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss: sinks, a window": Architecture("gpt_oss", GPT_OSS, spelled_out=True),
}


def exported(shared: Shared, architecture: Architecture) -> tuple[Path, list[Row]]:
    """The portable graph, and what transformers says of three unequal prompts."""
    model = architecture.model_type
    source = shared_model(shared, model, **architecture.config)
    return shared_portable(shared, model, **architecture.config), reference_rows(source)


def reference_rows(source: Path) -> list[Row]:
    random, eager = np.random.default_rng(0), load_eager(source)
    prompts = [random.integers(3, SIZES["vocab_size"], length).tolist() for length in PROMPTS]
    return [reference_row(eager, prompt, DECODED) for prompt in prompts]


def largest_error(rows: Sequence[Row], errors: Sequence[float]) -> float:
    """In units of the largest logit."""
    return max(errors) / max(float(np.abs(row.logits).max()) for row in rows)


def session_error(directory: Path, rows: Sequence[Row]) -> float:
    """Ragged prompts whole and in chunks, decode."""
    session = open_session(directory, threads=1)
    try:
        errors = [lead_session(session, rows, chunk=chunk, steps=DECODED).error for chunk in CHUNKS]
        return largest_error(rows, errors)
    finally:
        session.close()


def require_standard(directory: Path, architecture: Architecture) -> Counter[str]:
    """Operators of the standard alone, and an Attention a layer where it can compute the layer's attention."""
    model = ir.load(directory / "model.onnx")
    assert {node.domain for node in model.graph} == {""}
    assert set(model.graph.opset_imports) == {""}
    assert not model.functions
    found = Counter(node.op_type for node in model.graph)
    assert found["Attention"] == (0 if architecture.spelled_out else SIZES["num_hidden_layers"])
    return found


def check_openvino(portable: Path, folder: Path, architecture: Architecture, rows: Sequence[Row]) -> None:
    """Padded on either side by its inputs, whole and in chunks; and through a session."""
    report = optimize(portable, folder / "openvino", OptimizeOptions(target="openvino", logits="all"))
    assert all(not outcome.shortfalls for outcome in report.outcomes)
    assert require_standard(folder / "openvino", architecture)["Concat"] >= 2 * SIZES["num_hidden_layers"]
    graph = PortableGraph(folder / "openvino", threads=1)
    paths = [("left", 0), ("left", 7), ("right", 32)]
    errors = [lead_graph(graph, rows, side=side, chunk=chunk, steps=DECODED).error for side, chunk in paths]
    assert largest_error(rows, errors) < FP32
    assert session_error(folder / "openvino", rows) < FP32


@pytest.mark.parametrize("name", DENSE)
def test_dense_models(shared: Shared, tmp_path: Path, name: str) -> None:
    architecture = DENSE[name]
    portable, rows = exported(shared, architecture)
    check_openvino(portable, tmp_path, architecture, rows)
    report = optimize(portable, tmp_path / "rtx", OptimizeOptions(target="tensorrt-rtx"))
    assert all(not outcome.shortfalls for outcome in report.outcomes)
    assert require_standard(tmp_path / "rtx", architecture)["TensorScatter"] == 2 * SIZES["num_hidden_layers"]
    assert session_error(tmp_path / "rtx", rows) < FP16
    optimize(portable, tmp_path / "trt", OptimizeOptions(target="tensorrt"))
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "trt" / name).read_bytes() == (tmp_path / "rtx" / name).read_bytes()


@pytest.mark.parametrize("name", ["llama, tied", "qwen3: norms by head", "gemma2: softcaps, a window"])
def test_four_bits_of_weights_that_fit_into_them(tmp_path: Path, name: str) -> None:
    """Nothing is lost by rounding, so a graph of int4 agrees with the model as one of floats does."""
    architecture = DENSE[name]
    source = save_rounded(tmp_path / "hf", architecture.model_type, **architecture.config)
    export(str(source), tmp_path / "portable", ExportOptions(verify="off"))
    rows = reference_rows(source)
    targets: list[tuple[TargetName, float]] = [("openvino", FP32), ("tensorrt-rtx", FP16)]
    for target, limit in targets:
        path = tmp_path / target
        report = optimize(tmp_path / "portable", path, OptimizeOptions(target=target, precision="int4"))
        assert all(not outcome.shortfalls for outcome in report.outcomes)
        small = [v for v in ir.load(path / "model.onnx").graph.initializers.values() if v.dtype in FOUR_BITS]
        assert len(small) == 7 * SIZES["num_hidden_layers"]
        assert session_error(path, rows) < limit, target


@pytest.mark.parametrize("name", EXPERTS)
def test_experts(shared: Shared, tmp_path: Path, name: str) -> None:
    """They are loops over tokens, which run in float32."""
    architecture = EXPERTS[name]
    portable, rows = exported(shared, architecture)
    check_openvino(portable, tmp_path, architecture, rows)
    with pytest.raises(UnsupportedModelError, match="is a loop over tokens, which llmc computes in float32"):
        optimize(portable, tmp_path / "rtx", OptimizeOptions(target="tensorrt-rtx"))


@pytest.mark.slow
@pytest.mark.parametrize("built", BOTH, indirect=True)
@pytest.mark.parametrize(
    ("target", "precision", "bound"), [("tensorrt-rtx", "fp16", FP16), ("openvino", "fp32", FP32)]
)
def test_a_real_model(built: Built, target: TargetName, precision: Precision, bound: float) -> None:
    """Three rows of 23 to 57 tokens; ``pytest -s`` shows the errors."""
    rows = built.rows("ragged")
    directory = built.target(get_target(target).caches[0], target=target, precision=precision)
    session = open_session(directory, threads=THREADS)
    for chunk in CHUNKS:
        result = lead_session(session, rows, chunk=chunk, steps=DECODED)
        relative = largest_error(rows, [result.error])
        print(f"{built.name}, {target} {precision}, chunks of {chunk}: {result.error:.2g}, relative {relative:.2g}")
        assert relative < bound
        assert result.tokens
    session.close()
