from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from llmc.passes.cleanup.fold_constants import FoldConstants
from llmc.passes.cleanup.name_graph import SCOPES, NameGraph
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph.graph_query import dims

from ..graphs import Array, apply, close, draw, left_alone, parse, run

TEXT = """m (int64[s10, s70] input_ids, int64[s10, s53] attention_mask, float[s10, s70, 16] x,
    float[s10, 2, s0, 8] "past_key_values.0.key") => (y)
    <float[s10, s70, 16] a, float[s10, 2, {total}, 8] b, float[s10, s70, 16] c>
{{
    a = Tanh(x)
    b = Tanh("past_key_values.0.key")
    c = Tanh(x)
    y = Add(a, c)
}}"""


def make(total: str = "s0") -> ir.Model:
    return parse(TEXT.format(total=total))


def by_name(model: ir.Model) -> dict[str, ir.Value]:
    values = [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
    return {value.name: value for value in values if value.name}


def test_dimensions_get_the_fields_names() -> None:
    model = make()
    assert apply(NameGraph(), model).fired["dimensions"] == 4
    named = {name: dims(value) for name, value in by_name(model).items()}
    assert named["input_ids"] == ["batch", "sequence"]
    assert named["attention_mask"] == ["batch", "total"]
    assert named["past_key_values.0.key"] == ["batch", 2, "past", 8]
    assert named["a"] == ["batch", "sequence", 16]
    assert named["b"] == ["batch", 2, "past", 8]
    assert named["y"] == ["batch", "sequence", 16]


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("s0 + s70", "total"),
        ("s70+s0", "total"),
        ("s10*s70", "batch*sequence"),
        ("s100", "s100"),
        ("8*s0", "8*past"),
    ],
)
def test_expressions_of_dimensions(expression: str, named: str) -> None:
    model = make()
    by_name(model)["b"].shape = ir.Shape(["s10", 2, expression, None])
    apply(NameGraph(), model)
    assert dims(by_name(model)["b"]) == ["batch", 2, named, None]


def test_names_of_another_exporter() -> None:
    model = parse(TEXT.format(total="s0").replace("s10", "N").replace("s70", "length"))
    apply(NameGraph(), model)
    assert dims(by_name(model)["a"]) == ["batch", "sequence", 16]


def test_nodes_are_named_after_their_modules() -> None:
    model = make()
    scopes = {
        "a": "['', 'model', 'model.layers.1.self_attn.q_proj', 'linear']",
        "b": "['', 'linear']",
        "c": "['', 'model', 'model.layers.1.self_attn.q_proj', 'tanh']",
    }
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
        node.doc_string = "where it comes from"
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "a long text"
        if text := scopes.get(node.outputs[0].name or ""):
            node.metadata_props[SCOPES] = text
    assert apply(NameGraph(), model).fired["nodes"] == 2
    names = [node.name for node in model.graph]
    assert names == ["layers.1.self_attn.q_proj/Tanh", "node_b", "layers.1.self_attn.q_proj/Tanh.1", "node_y"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph)


def test_bodies_keep_no_trace_of_where_they_were_made() -> None:
    branches = "then_branch = t () => (float[n] z) {z = Add(x, x)}, else_branch = e () => (float[n] z) {z = Neg(x)}"
    model, body = make(), parse(f"m (float[n] x, bool c) => (y) {{ w = Tanh(x) \n y = If (c) <{branches}> }}").graph
    function = ir.Function("llmc", "Twice", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    nodes = list(ir.traversal.RecursiveGraphIterator(body))
    assert sorted(node.op_type for node in nodes) == ["Add", "If", "Neg", "Tanh"]
    for node in nodes:
        node.doc_string, node.metadata_props["pkg.torch.onnx.stack_trace"] = "here", "/home/someone/file.py, line 3"
    apply(NameGraph(), model)
    assert not any(node.metadata_props or node.doc_string for node in nodes)


def test_nodes_without_a_name_get_one_each() -> None:
    model = make()
    apply(NameGraph(), model)
    assert [node.name for node in model.graph] == ["Tanh", "Tanh.1", "Tanh.2", "Add"]


def test_folded_weights_get_their_names_back() -> None:
    text = "m (float[s, t] input_ids) => (y) { a = MatMul(input_ids, folded)\nb = MatMul(a, other)\ny = Add(b, c) }"
    model = parse(text, {"folded": draw(4, 4), "other": draw(4, 4), "c": draw(4)})
    renames = {"folded": "q_proj.weight.1", "other": "gate.3", "c": "q_proj.bias.1"}
    for old, new in renames.items():
        value = model.graph.initializers.pop(old)
        value.name = new
        model.graph.initializers[new] = value
    assert apply(NameGraph(), model).fired["weights"] == 2
    assert set(model.graph.initializers) == {"q_proj.weight", "gate.3", "q_proj.bias"}


def test_a_name_that_is_taken_stays_taken() -> None:
    text = "m (float[s, t] input_ids) => (y) { a = MatMul(input_ids, one)\ny = MatMul(a, two) }"
    model = parse(text, {"one": draw(4, 4), "two": draw(4, 4, seed=1)})
    for old, new in (("one", "proj.weight"), ("two", "proj.weight.1")):
        value = model.graph.initializers.pop(old)
        value.name = new
        model.graph.initializers[new] = value
    NameGraph()(model)
    assert set(model.graph.initializers) == {"proj.weight", "proj.weight.1"}


def test_a_named_graph_is_left_alone() -> None:
    model = make()
    NameGraph()(model)
    assert left_alone(NameGraph(), model) == []


def test_a_traced_decoder(traced: Callable[[], ir.Model], traced_feeds: dict[str, Array]) -> None:
    model = traced()
    before = run(model, traced_feeds)
    for graph_pass in (RemoveDeadCode(), FoldConstants(), RemoveDeadCode()):
        graph_pass(model)
    apply(NameGraph(), model)
    names = {node.name for node in model.graph}
    assert {f"model.layers.1.self_attn.{n}_proj/MatMul" for n in "qkvo"} <= names
    assert {"model.layers.0.self_attn/CachedAttention", "model.norm/RMSNormalization"} <= names
    assert {f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkvo"} <= set(model.graph.initializers)
    assert dims(model.graph.inputs[0]) == ["batch", "sequence"]
    assert dims(by_name(model)["past_key_values.1.value"]) == ["batch", 2, "past", 16]
    symbols = {d for value in by_name(model).values() for d in dims(value) or [] if isinstance(d, str)}
    assert symbols <= {"batch", "sequence", "past", "total"}
    close(run(model, traced_feeds), before)
