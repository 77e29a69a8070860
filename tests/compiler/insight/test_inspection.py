"""What is in a graph: operators, weights by kind, what a token costs; without reading a weight."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.graph.census import head_product
from llmc.compiler.insight.decode_cost import cache_bytes_per_token, decode_cost
from llmc.compiler.insight.inspection import inspect_path
from llmc.compiler.insight.inspection_diff import diff_inspections, diff_paths
from llmc.compiler.insight.weight_census import kind_of, take_census

FLOAT, INT64, UINT8 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8
VOCABULARY, HIDDEN, HEADS, KV_HEADS, DIM = 64, 32, 4, 2, 8


class Builder:
    """Makes a decoder of one layer, node by node."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.ids = ir.val("input_ids", INT64, ["batch", "sequence"])
        self.caches = [
            ir.val(f"past_key_values.0.{name}", FLOAT, ["batch", KV_HEADS, "past", DIM]) for name in ("key", "value")
        ]

    def weight(self, name: str, *shape: int, dtype: ir.DataType = FLOAT) -> ir.Value:
        tensor = ir.tensor(np.zeros(shape, dtype.numpy()), name=name)
        value = ir.val(name, dtype, shape)
        value.const_value = tensor
        self.weights.append(value)
        return value

    def node(self, op_type: str, *inputs: ir.Value | None, domain: str = "", name: str = "", **attributes: object):
        made = ir.node(op_type, list(inputs), attributes, domain=domain, name=name or None)
        self.nodes.append(made)
        return made.outputs[0]

    def model(self, logits: ir.Value) -> ir.Model:
        logits.name = "logits"
        graph = ir.Graph(
            [self.ids, *self.caches],
            [logits],
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": 23, "com.microsoft": 1},
        )
        return ir.Model(graph, ir_version=10, producer_name="tests")


def decoder(*, window: int = -1, tied: bool = True) -> ir.Model:
    """Embedding, norm, packed int4 attention with tables, feed-forward, head."""
    b = Builder()
    table = b.weight("model.embed_tokens.weight", VOCABULARY, HIDDEN)
    x = b.node("Gather", table, b.ids)
    x = b.node("RMSNormalization", x, b.weight("scale_17", HIDDEN))
    width = (HEADS + 2 * KV_HEADS) * DIM
    packed = b.weight("model.layers.0.self_attn.qkv_proj.packed", width, 1, 16, dtype=UINT8)
    scales = b.weight("model.layers.0.self_attn.qkv_proj.scales", width, 1)
    zeros = b.weight("model.layers.0.self_attn.qkv_proj.zero_points", width, 1, dtype=UINT8)
    qkv = b.node("MatMulNBits", x, packed, scales, zeros, domain="com.microsoft", K=HIDDEN, N=width, bits=4)
    tables = [b.weight(f"{name}_table", 16, DIM // 2) for name in ("cos", "sin")]
    inputs = [qkv, None, None, *b.caches, None, None, *tables]
    heads = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "local_window_size": window}
    attended = b.node("GroupQueryAttention", *inputs, domain="com.microsoft", **heads)
    up = b.weight("onnx::MatMul_17", HIDDEN, 48)
    x = b.node("MatMul", attended, up, name="/model/layers.0/mlp/up_proj/MatMul")
    x = b.node("MatMul", x, b.weight("model.layers.0.mlp.down_proj.weight", 48, HIDDEN))
    x = b.node("Reshape", x, b.weight("self_attn.shape", 3, dtype=INT64))
    head = b.node("Transpose", table, perm=[1, 0]) if tied else b.weight("output.weight", HIDDEN, VOCABULARY)
    return b.model(b.node("MatMul", x, head))


def kinds(model: ir.Model) -> dict[str, str]:
    head = head_product(model.graph)
    found = model.graph.initializers.values()
    return {value.name or "": kind_of(value, value.const_value, head) for value in found if value.const_value}


def test_kinds() -> None:
    assert kinds(decoder(tied=False)) == {
        "model.embed_tokens.weight": "embedding",
        "scale_17": "norms",
        "model.layers.0.self_attn.qkv_proj.packed": "attention",
        "model.layers.0.self_attn.qkv_proj.scales": "quantization scales",
        "model.layers.0.self_attn.qkv_proj.zero_points": "quantization zero points",
        "cos_table": "rotary tables",
        "sin_table": "rotary tables",
        "onnx::MatMul_17": "feed-forward",
        "model.layers.0.mlp.down_proj.weight": "feed-forward",
        "self_attn.shape": "other",
        "output.weight": "head",
    }


def test_bytes_and_types() -> None:
    census = take_census(decoder(tied=False))
    by_kind = {group.name: group.bytes for group in census.by_kind}
    assert by_kind["embedding"] == VOCABULARY * HIDDEN * 4
    assert by_kind["attention"] == 64 * 16
    assert by_kind["rotary tables"] == 2 * 16 * 4 * 4
    assert census.bytes == sum(by_kind.values()) == sum(group.bytes for group in census.by_dtype)
    assert {group.name: group.tensors for group in census.by_dtype} == {"FLOAT": 8, "UINT8": 2, "INT64": 1}
    assert not census.tied_head


def test_one_initializer_for_embedding_and_head() -> None:
    census = take_census(decoder(tied=True))
    assert "head" not in {group.name for group in census.by_kind}
    assert census.tied_head
    assert not census.shared


def external(name: str, offset: int, *shape: int) -> ir.ExternalTensor:
    return ir.ExternalTensor("weights.data", offset, int(np.prod(shape)) * 4, FLOAT, shape=ir.Shape(shape), name=name)


def test_two_initializers_at_one_place_count_once() -> None:
    b = Builder()
    head, table = b.weight("a_head", VOCABULARY, HIDDEN), b.weight("table", VOCABULARY, HIDDEN)
    head.const_value = external("a_head", 4096, VOCABULARY, HIDDEN)
    table.const_value = external("table", 4096, VOCABULARY, HIDDEN)
    x = b.node("Gather", table, b.ids)
    census = take_census(b.model(b.node("MatMul", x, b.node("Transpose", head, perm=[1, 0]))))
    assert census.bytes == VOCABULARY * HIDDEN * 4
    assert [group.name for group in census.by_kind] == ["embedding"]
    assert [(item.name, item.same_as, item.bytes) for item in census.shared] == [("a_head", "table", census.bytes)]
    assert census.tied_head


@pytest.mark.parametrize(("offset", "rows"), [(8192 * 4, VOCABULARY), (4096, VOCABULARY // 2)])
def test_other_places_count_each(offset: int, rows: int) -> None:
    """Another offset, or the same one with another length, is another tensor."""
    b = Builder()
    head, table = b.weight("a_head", HIDDEN, rows), b.weight("table", VOCABULARY, HIDDEN)
    head.const_value = external("a_head", offset, HIDDEN, rows)
    table.const_value = external("table", 4096, VOCABULARY, HIDDEN)
    census = take_census(b.model(b.node("MatMul", b.node("Gather", table, b.ids), head)))
    assert not census.shared
    assert {group.name: group.bytes for group in census.by_kind} == {
        "embedding": VOCABULARY * HIDDEN * 4,
        "head": HIDDEN * rows * 4,
    }


def test_flops() -> None:
    cost = decode_cost(decoder(), context=100)
    matrices = HIDDEN * 64 + HIDDEN * 48 + 48 * HIDDEN + HIDDEN * VOCABULARY
    assert cost.weight_flops == 2 * matrices
    assert cost.attention_flops == 2 * HEADS * (DIM + DIM) * 100
    assert cost.flops == cost.weight_flops + cost.attention_flops
    assert cost.not_counted == ()


def test_a_window_bounds_attention() -> None:
    full, windowed = (decode_cost(decoder(window=window), context=100) for window in (-1, 30))
    assert windowed.attention_flops * 100 == full.attention_flops * 30
    assert decode_cost(decoder(window=30), context=20).attention_flops == 2 * HEADS * 2 * DIM * 20


def test_what_cannot_be_counted_is_said() -> None:
    b = Builder()
    x = b.node("Gather", b.weight("table", VOCABULARY, HIDDEN), b.ids)
    cost = decode_cost(b.model(b.node("MatMul", x, x)))
    assert cost.weight_flops == 0
    assert cost.not_counted == ("1 MatMul whose sizes the graph does not state",)


@pytest.mark.parametrize(
    ("op_type", "positions", "attributes", "per_element"),
    [
        ("MoE", (2, 4), {}, 1),
        ("QMoE", (2, 5), {"expert_weight_bits": 4}, 2),
    ],
)
def test_experts_count_as_often_as_they_run(
    op_type: str, positions: tuple[int, int], attributes: dict[str, int], per_element: int
) -> None:
    b = Builder()
    x = b.node("Gather", b.weight("table", VOCABULARY, HIDDEN), b.ids)
    inputs: list[ir.Value | None] = [x, x, *[None] * 4]
    for position in positions:
        inputs[position] = b.weight(f"experts.{position}", 8, HIDDEN, 16)
    logits = b.node(op_type, *inputs, domain="com.microsoft", k=2, **attributes)
    assert decode_cost(b.model(logits)).weight_flops == 2 * 2 * HIDDEN * 16 * 2 * per_element


def test_portable_experts_count_as_often_as_they_run() -> None:
    b = Builder()
    x = b.node("Gather", b.weight("table", VOCABULARY, HIDDEN), b.ids)
    indices, weights = ir.val("indices", ir.DataType.INT64, ["tokens", 2]), ir.val("weights")
    matrices = [b.weight(f"experts.{name}", 8, HIDDEN, 16) for name in ("fc1", "fc2")]
    logits = b.node("MoE", x, indices, weights, *matrices, domain="llmc")
    assert decode_cost(b.model(logits)).weight_flops == 2 * 2 * HIDDEN * 16 * 2


def test_cache_bytes() -> None:
    graph = decoder().graph
    assert cache_bytes_per_token(graph) == 2 * KV_HEADS * DIM * 4
    graph.inputs[1].dtype = ir.DataType.FLOAT16
    assert cache_bytes_per_token(graph) == KV_HEADS * DIM * (4 + 2)
    graph.inputs[1].shape = ir.Shape(["batch", "heads", "past", DIM])
    assert cache_bytes_per_token(graph) is None
    assert cache_bytes_per_token(ir.Graph([], [], nodes=[])) is None


@pytest.fixture
def artifact(tmp_path: Path, manifest: Manifest) -> Path:
    """An engine directory whose weights are in a file of their own."""
    directory = tmp_path / "engine"
    directory.mkdir()
    ir.save(decoder(), directory / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    (directory / "engine.onnx").write_bytes(b"another file")
    write_manifest(directory, manifest)
    return directory


def test_an_artifact(artifact: Path) -> None:
    inspection = inspect_path(artifact, context=50)
    assert inspection.graph == artifact / "model.onnx"
    assert inspection.nodes == 9
    assert [(o.domain, o.name, o.count) for o in inspection.operators][:2] == [
        ("ai.onnx", "MatMul", 3),
        ("ai.onnx", "Gather", 1),
    ]
    assert inspection.opset_imports == {"ai.onnx": 23, "com.microsoft": 1}
    assert inspection.inputs[1].shape == ("batch", KV_HEADS, "past", DIM)
    assert inspection.producer == "tests"
    assert inspection.cost.context == 50
    assert inspection.manifest is not None
    assert inspection.manifest.passes[0].name == "PackQKV"
    value = json.loads(json.dumps(inspection.to_json()))
    assert value["weights"]["bytes"] == inspection.weights.bytes
    assert value["manifest"]["passes"][0]["counts"] == {"packed": 3}


def test_weights_are_not_read(artifact: Path) -> None:
    before = inspect_path(artifact / "model.onnx")
    (artifact / "model.onnx.data").unlink()
    assert inspect_path(artifact / "model.onnx").to_json() == before.to_json()
    with pytest.raises(ArtifactError, match=r"model.onnx.data is missing"):
        inspect_path(artifact)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        inspect_path(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="found none; name the file"):
        inspect_path(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        ir.save(decoder(), tmp_path / name)
    with pytest.raises(ArtifactError, match=r"found a.onnx, b.onnx; name the file"):
        inspect_path(tmp_path)
    (tmp_path / "b.onnx").unlink()
    assert inspect_path(tmp_path).graph.name == "a.onnx"
    (tmp_path / "a.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError, match="cannot be read as an ONNX model"):
        inspect_path(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="not an ONNX model"):
        inspect_path(tmp_path)
    with pytest.raises(UsageError, match="--context 0"):
        inspect_path(tmp_path, context=0)


def test_an_initializer_that_is_an_input_too_is_none(tmp_path: Path) -> None:
    """As files of old versions list them."""
    model = decoder()
    model.producer_version = "7"
    model.graph.inputs.append(model.graph.initializers["scale_17"])
    ir.save(model, tmp_path / "model.onnx")
    inspection = inspect_path(tmp_path)
    assert [port.name for port in inspection.inputs] == [
        "input_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert inspection.producer == "tests 7"


def test_model_onnx_is_meant_whatever_lies_beside_it(artifact: Path) -> None:
    ir.save(decoder(window=4), artifact / "a.onnx")
    assert inspect_path(artifact).graph == artifact / "model.onnx"
    (artifact / "llmc.json").unlink()
    found = inspect_path(artifact)
    assert (found.graph, found.manifest) == (artifact / "model.onnx", None)


def test_a_plan_for_each_batch(artifact: Path) -> None:
    graph = artifact / "model.onnx"
    inspection = inspect_path(graph, context=60, batches=(1, 3), chunk=10)
    assert [(plan.batch, plan.chunk, plan.context) for plan in inspection.memory] == [(1, 10, 60), (3, 10, 60)]
    assert [plan["batch"] for plan in inspection.to_json()["memory"]] == [1, 3]
    assert [plan.chunk for plan in inspect_path(graph, context=60, batches=(2,)).memory] == [60]
    assert inspect_path(graph).memory == ()


def test_the_same_does_not_differ(artifact: Path) -> None:
    diff = diff_paths(artifact, artifact)
    assert diff.same
    assert diff.to_json()["operators"] == []


def test_differences(artifact: Path, tmp_path: Path) -> None:
    ir.save(decoder(window=16, tied=False), tmp_path / "other.onnx")
    diff = diff_paths(artifact / "model.onnx", tmp_path / "other.onnx")
    assert [(c.name, c.left, c.right) for c in diff.operators] == [("ai.onnx::Transpose", 1, 0)]
    assert [(c.name, c.left, c.right) for c in diff.weights] == [("head", 0, VOCABULARY * HIDDEN * 4)]
    assert [c.name for c in diff.totals] == ["nodes", "weight bytes", "FLOPs per token, context 1024"]
    assert diff.ports == diff.manifest == ()
    assert json.loads(json.dumps(diff.to_json()))["same"] is False


def test_differences_of_manifests(artifact: Path, manifest: Manifest) -> None:
    left = inspect_path(artifact)
    assert left.manifest is not None
    first = dataclasses.replace(left.manifest.passes[0], name="FuseRotary")
    changed = dataclasses.replace(left.manifest.passes[0], counts={"packed": 2})
    other = dataclasses.replace(left.manifest, precision="int8", passes=(first, changed))
    diff = diff_inspections(left, dataclasses.replace(left, manifest=other))
    changes = {change.name: (change.left, change.right) for change in diff.manifest}
    assert changes["precision"] == ("int4", "int8")
    assert changes["passes.PackQKV.counts.packed"] == (3, 2)
    assert changes["passes.FuseRotary.modified"] == (None, True)
    assert {name.split(".")[0] for name in changes} == {"precision", "passes"}
    assert not any(name.startswith("passes.PackQKV.nodes") for name in changes)


def test_ports_that_differ(artifact: Path) -> None:
    left = inspect_path(artifact)
    inputs = (dataclasses.replace(left.inputs[0], dtype="INT32"), *left.inputs[1:])
    diff = diff_inspections(left, dataclasses.replace(left, inputs=inputs))
    assert [(c.name, c.left, c.right) for c in diff.ports] == [
        ("input input_ids", "INT64[batch, sequence]", "INT32[batch, sequence]")
    ]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="pipe is a pipe, a socket or a device"):
        inspect_path(tmp_path / "pipe")
