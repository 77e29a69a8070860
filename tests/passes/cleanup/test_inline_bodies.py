from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators.domain import DOMAIN, OPSET
from llmc.passes.cleanup.attach_bodies import AttachBodies
from llmc.passes.cleanup.inline_bodies import InlineBodies

from ..experts_graphs import ROUTERS, Layer
from ..graphs import Array, apply, close, draw_all, left_alone, operators, parse, run

ATTENTION = """m (float[batch, seq, 64] q, float[batch, seq, 32] k, float[batch, 2, past, 16] pk,
    float[batch, 2, past, 16] pv, int64[batch, total] attention_mask)
    => (float[batch, seq, 64] y1, float[batch, 2, total, 16] k0, float[batch, 2, total, 16] v0,
        float[batch, 2, total, 16] k1, float[batch, 2, total, 16] v1) <float[batch, seq, 64] y0> {
    y0, k0, v0 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(q, k, k, pk, pv, attention_mask)
    y1, k1, v1 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.2 MORE>(y0, k, k, pk, pv, attention_mask)
}"""


def attention(more: str = "") -> ir.Model:
    model = parse(ATTENTION.replace("MORE", more))
    for index, node in enumerate(model.graph):
        node.name = f"layers.{index}/attention"
    AttachBodies()(model)
    return model


def feeds() -> dict[str, Array]:
    made: dict[str, Array] = draw_all({"q": (2, 3, 64), "k": (2, 3, 32), "pk": (2, 2, 4, 16), "pv": (2, 2, 4, 16)})
    return made | {"attention_mask": np.asarray([[1] * 7, [0, 0, 1, 1, 1, 0, 1]])}


def require_plain(model: ir.Model) -> None:
    """No call and no body is left, names are unique, and onnx's checker accepts the graph without llmc's domain."""
    assert {node.domain for node in model.graph} == {""}
    assert not model.functions
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    for domain in (DOMAIN, "com.microsoft"):
        model.graph.opset_imports.pop(domain, None)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("router", ROUTERS)
def test_experts(router: str) -> None:
    layer = Layer(router=ROUTERS[router], interleaved=True, transposed=True, limit=1.0, biases=True)
    model = layer.model()
    for node in model.graph:
        node.name = node.outputs[0].name
    before = run(model, layer.feeds())
    assert apply(InlineBodies(), model).fired == {"operators": 1}
    require_plain(model)
    close(run(model, layer.feeds()), before, rtol=0, atol=0)


def test_what_was_not_lowered() -> None:
    """Two calls of one body, whose attributes differ, and one of another."""
    for more in ("", ", window=2, softcap=1.5"):
        model = attention(more)
        before = run(model, feeds())
        assert apply(InlineBodies(), model).fired == {"operators": 2}
        require_plain(model)
        close(run(model, feeds()), before, rtol=0, atol=0)


@pytest.mark.parametrize("opset", [OPSET, 24, 25])
def test_a_graph_that_was_moved_to_a_newer_opset(opset: int) -> None:
    """A lowering that needs newer operators may have run before; bodies mean the same there."""
    model = attention()
    before = run(model, feeds())
    model.graph.opset_imports[""] = opset
    apply(InlineBodies(), model)
    assert model.graph.opset_imports[""] == opset
    if opset < 25:
        close(run(model, feeds()), before, rtol=0, atol=0)


def test_outputs_keep_their_names() -> None:
    model = attention()
    InlineBodies()(model)
    assert [value.name for value in model.graph.outputs] == ["y1", "k0", "v0", "k1", "v1"]


def test_functions_of_others_stay() -> None:
    layer = Layer()
    model = layer.model()
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    twice = ir.node("Add", [x, x])
    graph = ir.Graph([x], twice.outputs, nodes=[twice], opset_imports={"": OPSET})
    other = ir.Function("elsewhere", "Twice", "", graph=graph, attributes=[])
    model.functions[other.identifier()] = other
    result = model.graph.outputs[0]
    node = ir.node("Twice", [result], domain="elsewhere")
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    model.graph.opset_imports["elsewhere"] = 1
    apply(InlineBodies(), model)
    assert list(model.functions) == [other.identifier()]
    assert operators(model)[-1] == "elsewhere::Twice"


def test_a_body_that_nobody_calls_goes_too() -> None:
    model = attention()
    body = parse("m (float[n] x) => (y) { y = Add(x, x) }").graph
    unread = ir.Function(DOMAIN, "Twice", "", graph=body, attributes=[])
    model.functions[unread.identifier()] = unread
    apply(InlineBodies(), model)
    require_plain(model)


def test_a_graph_without_calls_is_left_alone() -> None:
    model = parse("m (float[n] x) => (y) { y = Neg(x) }")
    assert left_alone(InlineBodies(), model) == []


def test_experts_of_all_kinds() -> None:
    for layer in (Layer(gated=False, activation="relu"), replace(Layer(), alpha=1.7, beta=1.0, activation="silu")):
        model = layer.model()
        before = run(model, layer.feeds())
        apply(InlineBodies(), model)
        close(run(model, layer.feeds()), before, rtol=0, atol=0)
