"""What small graphs and manifests say about memory: inputs of the cache, their buffers, and bytes of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.manifest import MANIFEST_NAME, EngineRecord, Manifest, Source
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.geometry import ModelGeometry
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.memory.facts import CacheInput, MemoryFacts, read_facts, weight_bytes

GRAPH = """<ir_version: 10, opset_import: ["" : 23, "test" : 1]>
tiny (int64[batch, sequence] input_ids,
      int8[batch, 2, past, 8] "past_key_values.0.key", float16[batch, 2, past, 6] "past_key_values.0.value",
      float[2, 1, 8] "past_key_values.0.scale", float[batch, 4, 3] "past_key_values.1.conv_state")
 => (float16[batch, 1, 64] logits,
     int8[batch, 2, total, 8] "present.0.key", float16[batch, 2, total, 6] "present.0.value",
     float[batch, 4, 3] "present.1.conv_state")
{ logits, "present.0.key", "present.0.value", "present.1.conv_state" = test.Decoder(input_ids) }"""


@pytest.fixture
def facts_of(tmp_path: Path) -> Callable[..., MemoryFacts]:
    """``facts_of(text, **manifest)``: of a graph, and of an artifact where fields of its manifest are given."""

    def read(text: str = GRAPH, **fields: Any) -> MemoryFacts:
        ir.save(ir.from_onnx_text(text), tmp_path / "model.onnx")
        if fields:
            write_manifest(tmp_path, manifest(**fields))
        return read_facts(tmp_path)

    return read


def manifest(
    details: dict[str, Any] | None = None,
    target: str = "cpu",
    cache: Any = "grow",
    graph: str = "model.onnx",
    **fields: Any,
) -> Manifest:
    geometry = ModelGeometry(
        model_type="llama",
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        value_head_dim=8,
        vocab_size=64,
        intermediate_size=32,
        max_position_embeddings=128,
        sliding_windows=(None,),
        tie_word_embeddings=False,
    )
    engine = EngineRecord("onnxruntime-cpu", None, details or {}, graph)
    wanted: dict[str, Any] = {
        "kind": "engine",
        "engine": engine,
        "contract": Contract(cache=cache, logits="last"),
        "max_context": 128,
        **fields,
    }
    return Manifest(
        source=Source(name="tiny", format="safetensors", files={}, licence=None),
        model=geometry,
        target=target,
        precision="fp16",
        weight_bytes=1000,
        passes=(),
        tolerances={},
        measured={},
        files={},
        tools={},
        **wanted,
    )


def test_a_bare_graph_keeps_past_and_present_apart(facts_of: Callable[..., MemoryFacts]) -> None:
    """A scale is the same for all rows and comes back from nowhere; a state has no slot per token."""
    facts = facts_of()
    assert facts.cache == (
        CacheInput("past_key_values.0.key", "INT8", 1.0, (2, None, 8), batched=True, copies=2),
        CacheInput("past_key_values.0.value", "FLOAT16", 2.0, (2, None, 6), batched=True, copies=2),
        CacheInput("past_key_values.0.scale", "FLOAT", 4.0, (2, 1, 8), batched=False, copies=1),
        CacheInput("past_key_values.1.conv_state", "FLOAT", 4.0, (4, 3), batched=True, copies=2),
    )
    assert [entry.grows for entry in facts.cache] == [True, True, False, False]
    assert facts.cache_bytes_per_token == 2 * (2 * 8 * 1 + 2 * 6 * 2)
    assert (facts.target, facts.max_context, facts.engines) == (None, None, None)


@pytest.mark.parametrize(("cache", "copies"), [("shared", [1, 1, 1, 2]), ("grow", [2, 2, 1, 2])])
def test_a_shared_cache_is_one_buffer_and_a_state_is_two(
    facts_of: Callable[..., MemoryFacts], cache: str, copies: list[int]
) -> None:
    assert [entry.copies for entry in facts_of(cache=cache).cache] == copies


def test_bytes_of_a_cache_input() -> None:
    packed = CacheInput("k", "INT4", 0.5, (3, None, 5), batched=True, copies=2)
    assert packed.bytes(1, 1) == 2 * 8, "15 values of four bits"
    assert packed.bytes(2, 7) == 2 * 105
    shared = CacheInput("s", "FLOAT", 4.0, (3, None), batched=False, copies=1)
    assert (shared.bytes(9, 7), shared.grows) == (3 * 7 * 4, True)
    assert CacheInput("s", "FLOAT", 4.0, (3, 5), batched=True, copies=2).bytes(9, 7) == 2 * 9 * 15 * 4


def test_a_number_for_the_whole_cache(facts_of: Callable[..., MemoryFacts]) -> None:
    facts = facts_of(GRAPH.replace('float[2, 1, 8] "past', 'float "past'))
    assert facts.cache[2] == CacheInput("past_key_values.0.scale", "FLOAT", 4.0, (), batched=False, copies=1)
    assert facts.cache[2].bytes(5, 7) == 4


def test_a_graph_for_a_target_has_no_engine_yet(facts_of: Callable[..., MemoryFacts]) -> None:
    facts = facts_of(kind="target", engine=None)
    assert (facts.target, facts.engines, facts.graph_file.name) == ("cpu", None, "model.onnx")


@pytest.mark.parametrize("unstated", ["float16[batch, 2, past, 6]", "int8[batch, 2, past, 8]"])
def test_a_cache_without_a_shape_is_refused(facts_of: Callable[..., MemoryFacts], unstated: str) -> None:
    with pytest.raises(ArtifactError, match="states no shape or no type"):
        facts_of(GRAPH.replace(unstated, unstated.partition("[")[0] + "[]"))


def test_the_manifest_knows_target_and_context(facts_of: Callable[..., MemoryFacts]) -> None:
    facts = facts_of(target="cuda", max_context=77)
    assert (facts.target, facts.max_context) == ("cuda", 77)


@pytest.mark.parametrize(("own", "longest"), [(200, 64), (50, 50), (None, 64)])
def test_the_context_is_that_of_the_engines_and_the_models(
    facts_of: Callable[..., MemoryFacts], own: int | None, longest: int
) -> None:
    plan = CapacityPlan((Bucket(32, "a", 1), Bucket(96, "b", 2)), max_batch=2, chunk=16, max_context=64)
    facts = facts_of(target="tensorrt-rtx", max_context=own, details={"plan": plan.to_json()})
    assert (facts.max_context, facts.engines) == (longest, plan)


def test_which_graph_is_opened(facts_of: Callable[..., MemoryFacts], tmp_path: Path) -> None:
    """The one that the manifest names; without one the engine's, else the portable one; a file is itself."""
    for name in ("engine.onnx", "special.onnx"):
        ir.save(ir.from_onnx_text(GRAPH), tmp_path / name)
    assert facts_of().graph_file.name == "engine.onnx"
    assert facts_of(graph="special.onnx").graph_file.name == "special.onnx"
    with pytest.raises(ArtifactError, match=r"holds no gone\.onnx"):
        facts_of(graph="gone.onnx")
    for name in ("engine.onnx", MANIFEST_NAME):
        (tmp_path / name).unlink()
    assert facts_of().graph_file.name == "model.onnx"
    assert read_facts(tmp_path / "special.onnx").graph_file.name == "special.onnx"


def outside(folder: Path, name: str, offset: int, count: int, file: str = "one.data") -> ir.Value:
    where = {"name": name, "shape": ir.Shape([count]), "base_dir": folder}
    tensor = ir.ExternalTensor(file, offset, 2 * count, ir.DataType.FLOAT16, **where)  # type: ignore[arg-type]
    return ir.Value(name=name, const_value=tensor)


def graph_with(*initializers: ir.Value, nodes: list[ir.Node] | None = None) -> ir.Graph:
    return ir.Graph([], [], nodes=nodes or [], initializers=list(initializers), opset_imports={"": 23})


def test_weights_are_the_files_that_they_lie_in(tmp_path: Path) -> None:
    """Padding counts, and a file once however many tensors lie there."""
    (tmp_path / "one.data").write_bytes(bytes(100))
    (tmp_path / "two.data").write_bytes(bytes(1000))
    graph = graph_with(
        outside(tmp_path, "a", 0, 10), outside(tmp_path, "b", 64, 10), outside(tmp_path, "c", 0, 5, "two.data")
    )
    assert weight_bytes(graph) == 1100


def test_a_missing_file_counts_as_its_tensors_each_place_once(tmp_path: Path) -> None:
    (tmp_path / "two.data").write_bytes(bytes(1000))
    tied = [outside(tmp_path, name, 64, 10) for name in ("b", "b again")]
    graph = graph_with(outside(tmp_path, "a", 0, 10), *tied, outside(tmp_path, "c", 0, 5, "two.data"))
    assert weight_bytes(graph) == 20 + 20 + 1000


def test_constants_inside_count_those_of_subgraphs_too() -> None:
    def inside(name: str, count: int) -> ir.Value:
        return ir.Value(name=name, const_value=ir.tensor(np.zeros(count, np.int32), name=name))

    body = graph_with(inside("inner", 3))
    node = ir.node("If", [ir.Value(name="c")], {"then_branch": body, "else_branch": graph_with(inside("other", 7))})
    assert weight_bytes(graph_with(inside("outer", 5), nodes=[node])) == 4 * (5 + 3 + 7)
