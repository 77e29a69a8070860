"""Tiny models of the main kinds of decoder, compiled for CUDA: what the graphs look like, and what they say.

The numbers are measured by ONNX Runtime's CPU provider, which runs the same graph where it has the kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import CompileReport, PassOutcome
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.compiler.driver.verification import KL, LOGIT_ERROR, TOP1
from llmc.passes.graph.graph_query import dims
from llmc.runtimes.onnxruntime.operator_support import has_input

from ..end_to_end.tiny import SIZES, save_model

pytestmark = pytest.mark.skipif(
    not has_input("com.microsoft", "GatedRMSNorm", "gate")
    or not has_input("com.microsoft", "GroupQueryAttention", "q_norm_weight"),
    reason="this ONNX Runtime's CPU provider lacks operators of the CUDA target",
)
LAYERS, HEADS, KV_HEADS = 2, 4, 2
ROTARY, NORMS = (7, 8), (14, 15)
"""Places of cos and sin caches and of head norms among GroupQueryAttention's inputs."""


@dataclass(frozen=True)
class Case:
    """A model, and what its graphs must have.

    Attributes:
        model_type: transformers' name.
        config: What differs from the tiny sizes.
        packed: Query, key and value come from one product.
        rotary: Attention rotates.
        norms: Attention normalizes the heads.
        casts: To half precision, of what is computed from positions, however many layers read it.
        on_host: The CPU provider has all the kernels.
        counts: Operators that must occur so often.
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    packed: bool = True
    rotary: bool = True
    norms: bool = False
    casts: int = 0
    on_host: bool = True
    counts: dict[str, int] = field(default_factory=dict)


GATED = {"GatedRMSNorm": LAYERS, "Split": LAYERS}
CASES = {
    "llama": Case("llama", counts={**GATED, "SkipSimplifiedLayerNormalization": 2 * LAYERS, "Reshape": 0}),
    "qwen3: norms by head": Case(
        "qwen3", {"head_dim": 32}, norms=True, on_host=False,
        counts={**GATED, "RMSNormalization": 1, "Reshape": 0, "Transpose": 0},
    ),
    "gemma2: softcaps, a window, tied": Case(
        "gemma2", {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
        counts={"Split": LAYERS, "Gelu": LAYERS},
    ),
    "mixtral: experts": Case(
        "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, on_host=False, counts={"MoE": LAYERS}
    ),
    "phi: rotates half of each head": Case(
        "phi", packed=False, rotary=False, casts=2, counts={"RotaryEmbedding": 2 * LAYERS, "Cos": 1}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """An engine: its graphs, and what was said while it was made."""

    case: Case
    target: ir.Graph
    engine: ir.Graph
    report: CompileReport

    @property
    def manifest(self) -> Manifest:
        return self.report.manifest

    def outcome(self, name: str) -> PassOutcome:
        return next(outcome for outcome in self.report.outcomes if outcome.record.name == name)


@pytest.fixture(scope="module", params=CASES)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("cuda")
    source = save_model(folder / "hf", case.model_type, num_hidden_layers=LAYERS, **case.config)
    options = CompileOptions(ExportOptions(verify="on" if case.on_host else "off"), OptimizeOptions(target="cuda"))
    report = compile_model(str(source), folder / "engine", options)
    return Compiled(case, load(folder / "engine" / "model.onnx"), load(folder / "engine" / "engine.onnx"), report)


def load(path: Path) -> ir.Graph:
    return ir.load(path).graph


def operators(graph: ir.Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph)


def attentions(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "GroupQueryAttention"]


def names(values: Any) -> list[str | None]:
    return [value.name for value in values]


def sources(value: ir.Value) -> set[ir.Value]:
    """Graph inputs and constants from whose content a value is computed; a shape is no content."""
    found: set[ir.Value] = set()
    stack, seen = [value], {value}
    while stack:
        node = (current := stack.pop()).producer()
        if node is None:
            found.add(current)
        elif node.op_type not in {"Shape", "Size"}:
            new = {given for given in node.inputs if given is not None} - seen
            seen |= new
            stack += new
    return found


def test_every_attention_is_the_runtimes_own(compiled: Compiled) -> None:
    case = compiled.case
    for graph in (compiled.target, compiled.engine):
        assert {node.domain for node in graph} <= {"", "com.microsoft"}
        assert len(attentions(graph)) == LAYERS
        for node in attentions(graph):
            given = [*node.inputs, *[None] * 17][:17]
            assert (given[1] is None) == (given[2] is None) == case.packed
            assert all((given[index] is not None) == case.rotary for index in ROTARY)
            assert all((given[index] is not None) == case.norms for index in NORMS)
    for what, times in case.counts.items():
        assert operators(compiled.target)[what] == times, what


def test_packed_projections_are_one_product(compiled: Compiled) -> None:
    if not compiled.case.packed:
        reasons = [reason for _, reason in compiled.outcome("PackQKV").rejections]
        assert reasons == ["its query comes from Reshape, not a projection"] * LAYERS
        return
    assert compiled.outcome("PackQKV").shortfalls == ()
    for node in attentions(compiled.engine):
        query, past = node.inputs[0], node.inputs[3]
        assert query is not None
        product = query.producer()
        assert product is not None
        assert product.op_type == "MatMul"
        width = dims(product.inputs[1])
        assert width is not None
        head = (dims(past) or [])[3]
        assert isinstance(head, int)
        assert width[1] == (HEADS + 2 * KV_HEADS) * head


def test_nothing_runs_on_the_cpu_that_need_not(compiled: Compiled) -> None:
    outcome = compiled.outcome("CheckCudaKernels")
    assert outcome.rejections == ()
    assert outcome.record.counts == outcome.record.expected
    assert outcome.record.counts["gpu"] > 20
    assert not outcome.record.modified


def test_every_activation_is_half(compiled: Compiled) -> None:
    for graph in (compiled.target, compiled.engine):
        floats = [
            value for value in (*graph.inputs, *graph.outputs) if (value.name or "").startswith(("pa", "pr", "lo"))
        ]
        assert len(floats) == 4 * LAYERS + 1
        assert {value.dtype for value in floats} == {ir.DataType.FLOAT16}
        wide = [output for node in graph for output in node.outputs if output.dtype == ir.DataType.FLOAT]
        wide += [value for value in graph.initializers.values() if value.dtype == ir.DataType.FLOAT]
        for value in wide:
            reached = {source for source in sources(value) if source.is_graph_input() or source.dtype in HALVES}
            assert set(names(reached)) <= {"position_ids", *LENGTHS}, value.name
        assert all((dims(value) or [0])[0] != SIZES["vocab_size"] for value in wide)


HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
LENGTHS = ("seqlens_k", "total_sequence_length", "chunk_lengths", "last_rows", "attention_mask")


def test_what_positions_give_is_cast_once(compiled: Compiled) -> None:
    casts = [node for node in compiled.engine if node.op_type == "Cast"]
    to_half = [node for node in casts if node.attributes.get_int("to") == int(ir.DataType.FLOAT16)]
    assert len(to_half) == compiled.case.casts
    assert compiled.outcome("ConvertFloat").record.fields == {"to": "fp32", "wide_residual": False}
    last = [outcome for outcome in compiled.report.outcomes if outcome.record.name == "ConvertFloat"][-1]
    assert last.record.fields == {"to": "fp16", "wide_residual": False}
    assert last.record.counts.get("casts added", 0) == compiled.case.casts


def test_constants_keep_their_names(compiled: Compiled) -> None:
    """One that is written anew takes the place of the old one."""
    initializers = set(compiled.target.initializers)
    copies = {name for name in initializers if re.sub(r"\.\d+$", "", name) in initializers - {name}}
    used = {value.name for node in compiled.target for value in node.inputs if value is not None}
    assert initializers <= used
    assert len(copies) <= compiled.case.casts


def test_lengths_are_inputs_of_the_engine_alone(compiled: Compiled) -> None:
    engine, target = names(compiled.engine.inputs), names(compiled.target.inputs)
    assert "attention_mask" in target
    assert not {"attention_mask", "position_ids"} & set(engine)
    assert {"input_ids", "seqlens_k", "total_sequence_length"} < set(engine)
    assert "seqlens_k" not in target
    assert names(compiled.engine.outputs) == names(compiled.target.outputs)
    weights = {name for name, value in compiled.target.initializers.items() if value.dtype in HALVES}
    assert weights <= set(compiled.engine.initializers)
    passes = [record.name for record in compiled.manifest.passes]
    assert passes.index("CheckCudaKernels") < passes.index("TakeLengths")


def test_it_says_what_the_model_says(compiled: Compiled) -> None:
    """float16 has eleven bits: logits of about 5 differ by some hundredths after two layers."""
    measured, verification = compiled.manifest.measured, compiled.report.verification
    if not compiled.case.on_host:
        assert (measured, verification) == ({}, None), "it was not asked for"
        return
    (errors,) = measured.values()
    assert errors[LOGIT_ERROR] < 0.03
    assert errors[KL] < 2e-5
    assert errors[TOP1] > 0.95
    assert verification is not None
    assert verification.passed
