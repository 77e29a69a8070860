"""The whole order of passes for runtimes that read ONNX's own operators, on a traced decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.reports import PassOutcome
from llmc.compiler.base.contract import Contract
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import GraphPass
from llmc.passes.lowering.residual_stream import residual_stream
from llmc.passes.pipeline import GraphRequest, portable_passes, standard_passes, tensorrt_engine_passes
from llmc.passes.runner import merge_contract, run_passes

from ..compiler.quantization.small_numbers import stood_for
from .conftest import DIM, KV_HEADS, LAYERS, VOCABULARY
from .graphs import Array, open_session, require_order
from .plans import in_standard

PAST = [f"past_key_values.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
PRESENT = [name.replace("past_key_values", "present") for name in PAST]
OPENVINO = GraphRequest(64, cache="grow")
TENSORRT = GraphRequest(64, "fp16")
LINEARS = 7 * LAYERS
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, (2, 16))
TYPES = {np.dtype(np.float32): np.float32, np.dtype(np.float16): np.float16}
Traced = Callable[[], ir.Model]


@pytest.fixture(scope="module")
def portable_once(traced_once: ir.Model) -> ir.Model:
    model = traced_once.clone()
    run_passes(model, portable_passes())
    return model


@pytest.fixture
def portable(portable_once: ir.Model) -> Traced:
    """Fresh copies that share nothing: clones share the types of values."""
    proto = ir.to_proto(portable_once)
    return lambda: ir.from_proto(proto)


def optimized(portable: Traced, target: GraphRequest, *more: GraphPass) -> tuple[ir.Model, dict[str, PassOutcome]]:
    model = portable()
    outcomes = run_passes(model, [*standard_passes(target), *more])
    require_order(model)
    return model, {outcome.record.name: outcome for outcome in outcomes}


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def check(model: ir.Model) -> None:
    """Operators of the standard alone, with names of their own, accepted by onnx's checker."""
    assert {node.domain for node in model.graph} == {""}
    assert set(model.graph.opset_imports) <= {"", "llmc"}
    assert not model.functions
    assert model.graph.opset_imports[""] == 24
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


class Led:
    """A graph led along tokens; rows advance by themselves."""

    def __init__(self, model: ir.Model, *, scatter: bool, lengths: bool = False, capacity: int = 16) -> None:
        self.session = open_session(model)
        self.types = {item.name: item.type for item in self.session.get_inputs()}
        self.scatter, self.lengths = scatter, lengths
        self.mask, self.done = np.zeros((2, 0), np.int64), np.zeros(2, np.int64)
        half = self.types[PAST[0]] == "tensor(float16)"
        empty = np.full((2, KV_HEADS, capacity if scatter else 0, DIM), 9.0 if scatter else 0.0)
        self.cache = dict.fromkeys(PAST, empty.astype(np.float16 if half else np.float32))

    def step(self, counts: Sequence[int]) -> Array:
        """So many tokens of each row, padded on the right in this chunk: the logits."""
        seq, valid = max(counts), np.asarray(counts)
        columns = np.arange(seq)
        ids = np.full((2, seq), 1, np.int64)
        for row, count in enumerate(counts):
            ids[row, :count] = TOKENS[row, self.done[row] : self.done[row] + count]
        self.mask = np.concatenate([self.mask, (columns < valid[:, None]).astype(np.int64)], axis=1)
        feeds = {"input_ids": ids, "attention_mask": self.mask, "position_ids": self.done[:, None] + columns}
        feeds |= {"past_lengths": self.done, "chunk_lengths": valid, **self.cache}
        names = ["logits", *PRESENT]
        logits, *present = self.session.run(names, {n: array for n, array in feeds.items() if n in self.types})
        self.cache = dict(zip(PAST, present, strict=True))
        self.done = self.done + valid
        return np.asarray(logits)


CHUNKS = [(5, 3), (2, 4), (1, 1), (1, 1), (1, 1)]


def row_by_row(portable: ir.Model) -> list[list[Array]]:
    """Of each row alone, by a portable graph: the logits of all tokens of each chunk."""
    found = []
    session = open_session(portable)
    for row in range(2):
        cache: dict[str, Array] = dict.fromkeys(PAST, np.zeros((1, KV_HEADS, 0, DIM), np.float32))
        done, logits = 0, []
        for chunk in CHUNKS:
            count = chunk[row]
            feeds = {"input_ids": TOKENS[[row], done : done + count], **cache}
            done += count
            feeds |= {"attention_mask": np.ones((1, done), np.int64)}
            feeds |= {"position_ids": np.arange(done - count, done)[None]}
            made, *present = session.run(["logits", *PRESENT], feeds)
            cache = dict(zip(PAST, present, strict=True))
            logits.append(made[0])
        found.append(logits)
    return found


@pytest.fixture(scope="module")
def expected(portable_once: ir.Model) -> list[list[Array]]:
    return row_by_row(portable_once)


def with_stored_weights(portable: ir.Model, quantized: ir.Model) -> ir.Model:
    """The float32 graph over what the small numbers of another one stand for."""
    replaced = 0
    for name, value in portable.graph.initializers.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in quantized.graph.initializers:
            matrix = stood_for(quantized, stem).astype(np.float32)
            [user, *_] = [use.node for use in value.uses()]
            turned = user.op_type == "MatMul"
            value.const_value = ir.tensor(np.ascontiguousarray(matrix.T if turned else matrix))
            replaced += 1
    assert replaced == LINEARS + 1
    return portable


def error(led: Led, expected: list[list[Array]], *, last: bool = True) -> float:
    """The largest, in units of the largest logit."""
    largest, errors = max(float(np.abs(array).max()) for row in expected for array in row), []
    for number, counts in enumerate(CHUNKS):
        logits = led.step(counts)
        for row, count in enumerate(counts):
            actual = logits[row] if last else logits[row, :count]
            wanted = expected[row][number][-1:] if last else expected[row][number]
            assert actual.shape == wanted.shape
            errors.append(float(np.abs(actual - wanted).max()))
    return max(errors) / largest


def test_openvino(portable: Traced, expected: list[list[Array]]) -> None:
    model, outcomes = optimized(portable, OPENVINO)
    check(model)
    assert outcomes["UseStandardAttention"].record.counts == {"attention": LAYERS}
    assert all(not outcome.shortfalls for outcome in outcomes.values())
    found = kinds(model)
    assert (found["Attention"], found["TensorScatter"]) == (LAYERS, 0)
    assert (found["RotaryEmbedding"], found["RMSNormalization"]) == (2 * LAYERS, 2 * LAYERS + 1)
    assert merge_contract(Contract(), outcomes.values()) == Contract(logits="last")
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask", "position_ids", *PAST]
    assert all(value.dtype == ir.DataType.FLOAT for value in model.graph.outputs)
    assert error(Led(model, scatter=False), expected) < 1e-5


def test_the_layouts_around_attention_cancel(portable: Traced) -> None:
    """Rotation and attention want heads before tokens: three transpositions a layer go there, one comes back."""
    model, _ = optimized(portable, OPENVINO)
    found = kinds(model)
    assert found["Transpose"] - 1 == 4 * LAYERS, "and one of the tied head"
    assert found["Reshape"] == 4 * LAYERS


@pytest.mark.parametrize("activations", ["fp32", "fp16", "bf16"])
def test_tensorrt(portable: Traced, expected: list[list[Array]], activations: Any) -> None:
    target = GraphRequest(64, activations)
    model, outcomes = optimized(portable, target)
    check(model)
    assert outcomes["UseStandardAttention"].record.counts == {"attention": LAYERS}
    assert all(not outcome.shortfalls for outcome in outcomes.values())
    found = kinds(model)
    assert (found["Attention"], found["TensorScatter"]) == (LAYERS, 2 * LAYERS)
    rounded: Any = None if activations == "fp32" else activations
    called = Contract(rows="slot0", cache="shared", logits="last", rounded_to=rounded)
    assert merge_contract(Contract(), outcomes.values()) == called
    kind = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[activations]
    assert {value.dtype for value in model.graph.outputs} == {kind}
    assert {value.dtype for value in model.graph.inputs if value.name in PAST} == {kind}
    for node in model.graph:
        if node.op_type in {"Attention", "TensorScatter", "MatMul"}:
            assert node.outputs[0].dtype == kind, node.name
    # Float16 ends at 65,504; what layers add up to may not.
    stream = {node.outputs[0].dtype for node in residual_stream(model.graph) if node.op_type == "Add"}
    assert stream == {ir.DataType.BFLOAT16 if activations == "bf16" else ir.DataType.FLOAT}
    if activations != "bf16":
        # Eleven bits through two layers; the CPU provider has few kernels for bfloat16.
        limit = {"fp32": 1e-5, "fp16": 5e-3}[activations]
        assert error(Led(model, scatter=True), expected) < limit


@pytest.mark.parametrize("target", [OPENVINO, TENSORRT], ids=["openvino", "tensorrt"])
def test_logits_of_all_tokens(portable: Traced, expected: list[list[Array]], target: GraphRequest) -> None:
    every = replace(target, logits="all")
    model, _ = optimized(portable, every)
    assert "GatherND" not in kinds(model)
    led = Led(model, scatter=target.cache == "shared")
    assert error(led, expected, last=False) < (1e-5 if target is OPENVINO else 5e-3)


@pytest.mark.parametrize("logits", ["last", "all"])
def test_the_graph_that_a_tensorrt_engine_is_built_of(
    portable: Traced, expected: list[list[Array]], logits: Any
) -> None:
    """No mask and no positions: a row's length, and how many tokens of this chunk are its own."""
    target = GraphRequest(64, "fp16", logits=logits)
    model, outcomes = optimized(portable, target, *tensorrt_engine_passes())
    check(model)
    lengths = ["past_lengths", "chunk_lengths"] if logits == "last" else ["past_lengths"]
    assert [value.name for value in model.graph.inputs] == ["input_ids", *PAST, *lengths]
    assert {dims(value)[0] for value in model.graph.inputs[-len(lengths) :]} == {"batch"}  # type: ignore[index]
    assert outcomes["TakeLengths"].rejections == ()
    assert not {"ReduceSum", "CumSum"} & set(kinds(model))
    assert error(Led(model, scatter=True, lengths=True), expected, last=logits == "last") < 5e-3


@pytest.mark.parametrize(
    ("target", "quantization"),
    [
        (OPENVINO, in_standard("int8")),
        (OPENVINO, in_standard("int4", offset=True, offset_form="zero_point")),
        (TENSORRT, in_standard("int8")),
        (TENSORRT, in_standard("fp8")),
        (TENSORRT, in_standard("int4", offset=True)),
        (TENSORRT, in_standard("int4", "int4", block_size=16)),
    ],
    ids=["openvino int8", "openvino int4", "tensorrt int8", "tensorrt fp8", "tensorrt int4", "tensorrt int4 by 16"],
)
def test_weights_of_few_bits(
    portable: Traced, expected: list[list[Array]], target: GraphRequest, quantization: GraphPass
) -> None:
    """Every projection, and the table once for both its uses; the logits are those of the stored numbers."""
    made = replace(target, quantization=quantization)
    model, outcomes = optimized(portable, made)
    check(model)
    assert outcomes["QuantizeWeights"].record.counts == {"linear": LINEARS, "embedding": 1, "head": 1}
    assert all(not outcome.shortfalls for outcome in outcomes.values())
    small = {ir.DataType.INT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT8E4M3FN}
    stored = Counter(value.dtype for value in model.graph.initializers.values() if value.dtype in small)
    assert stored.total() == LINEARS + 1
    floats = [v for v in model.graph.initializers.values() if v.dtype not in small and v.const_value is not None]
    assert max(value.const_value.size for value in floats if value.const_value is not None) <= 512
    wanted = row_by_row(with_stored_weights(portable(), model))
    assert error(Led(model, scatter=target.cache == "shared"), wanted) < (1e-5 if target is OPENVINO else 5e-3)
    assert error(Led(model, scatter=target.cache == "shared"), expected) > 0.01, "the weights are other ones"


def test_a_second_quantization_finds_nothing(portable: Traced) -> None:
    quantization = in_standard("int4", offset=True)
    model, _ = optimized(portable, GraphRequest(64, "fp16", quantization=quantization))
    assert not quantization(model).modified


def test_the_order() -> None:
    names = [type(item).__name__ for item in standard_passes(TENSORRT)]
    assert names.index("LastTokenLogits") < names.index("UseStandardAttention") < names.index("InlineBodies")
    assert names.index("EqualHeadWidths") < names.index("UseStandardAttention")
    assert "EqualHeadWidths" not in [type(item).__name__ for item in standard_passes(OPENVINO)]
    assert names.count("ConvertFloat") == 2
    quantized = GraphRequest(64, "fp16", quantization=in_standard("int8"))
    passes = [type(item).__name__ for item in standard_passes(quantized)]
    assert passes.index("QuantizeWeights") > max(i for i, name in enumerate(passes) if name == "ConvertFloat")
