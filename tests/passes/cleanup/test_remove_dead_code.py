from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.cached_attention import Variant
from llmc.passes.cleanup.attach_bodies import AttachBodies
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph_pass import GraphPassResult

from ..graphs import Array, apply, close, draw, left_alone, operators, parse, run

FEEDS = {"x": draw(2, 16)}


def make(body: str, outputs: str = "y") -> ir.Model:
    model = parse(f"m (float[n, 16] x) => ({outputs}) {{ {body} }}", {"w": draw(16, 16), "unused": draw(16)})
    del model.graph.opset_imports["llmc"], model.graph.opset_imports["com.microsoft"]
    return model


def test_what_no_output_needs_goes() -> None:
    model = make("y = MatMul(x, w)\na = Tanh(x)\nb = Add(a, unused)")
    before = run(model, FEEDS)
    assert apply(RemoveDeadCode(), model).fired == {"unused nodes": 2}
    assert operators(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["w"]
    close(run(model, FEEDS), before)


def test_what_is_equal_is_computed_once() -> None:
    model = make("a = Tanh(x)\nb = Tanh(x)\nc = MatMul(a, w)\nd = MatMul(b, w)\ny = Add(c, d)")
    before = run(model, FEEDS)
    assert apply(RemoveDeadCode(), model).fired["common subexpressions"] == 2
    assert operators(model) == ["Tanh", "MatMul", "Add"]
    close(run(model, FEEDS), before)


def test_other_attributes_or_inputs_are_not_equal() -> None:
    model = make("a = Softmax<axis=0>(x)\nb = Softmax<axis=1>(x)\nc = Sub(a, b)\nd = Sub(b, a)\ny = Mul(c, d)")
    before = run(model, FEEDS)
    RemoveDeadCode()(model)
    assert len(operators(model)) == 5
    close(run(model, FEEDS), before)


def test_outputs_keep_their_names() -> None:
    model = make("y = Tanh(x)\ny2 = Tanh(x)", outputs="y, y2")
    before = run(model, FEEDS)
    RemoveDeadCode()(model)
    assert [value.name for value in model.graph.outputs] == ["y", "y2"]
    close(run(model, FEEDS), before)


def test_bodies_that_nothing_calls_go() -> None:
    text = """m (float[b, s, 32] q, float[b, s, 32] k, float[b, 2, p, 16] pk, float[b, 2, p, 16] pv, int64[b, t] mask)
        => (y, k1, v1)
        { y, k1, v1 = llmc.CachedAttention<num_heads=2, kv_num_heads=2, scale=1.0>(q, k, k, pk, pv, mask) }"""
    model = parse(text)
    apply(AttachBodies(), model)
    other = cached_attention.function(Variant(packed=True))
    model.functions[other.identifier()] = other
    assert apply(RemoveDeadCode(), model).fired["unused functions"] == 1
    assert [identifier[2] for identifier in model.functions] == [""]


def test_domains_that_nothing_is_of_go() -> None:
    model = make("y = com.microsoft.QuickGelu<alpha=1.0>(x)")
    model.graph.opset_imports.update({"com.microsoft": 1, "llmc": 1})
    result = RemoveDeadCode()(model)
    assert isinstance(result, GraphPassResult)
    assert result.tally.fired["unused opsets"] == 1
    assert set(model.graph.opset_imports) == {"", "com.microsoft"}


def test_a_clean_graph_is_left_alone() -> None:
    model = make("y = MatMul(x, w)")
    RemoveDeadCode()(model)
    assert left_alone(RemoveDeadCode(), model) == []


def test_a_traced_decoder(traced: Callable[[], ir.Model], traced_feeds: dict[str, Array]) -> None:
    model = traced()
    before, nodes = run(model, traced_feeds), model.graph.num_nodes()
    apply(RemoveDeadCode(), model)
    assert model.graph.num_nodes() < nodes * 0.6
    close(run(model, traced_feeds), before, rtol=0, atol=0)
