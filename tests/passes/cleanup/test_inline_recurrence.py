from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators import cached_attention, recurrence
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION
from llmc.passes.cleanup.fold_constants import FoldConstants
from llmc.passes.cleanup.inline_recurrence import InlineRecurrence

from ..graphs import Array, apply, close, draw, left_alone, operators, parse, run

BATCH, SEQ, IN, WIDTH = 3, 5, 8, 16
STEP = f"""<ir_version: 10, opset_import: ["": {OPSET}]>
step (float[batch, 1, {IN}] x, float[batch, {WIDTH}] s, float[{WIDTH}, {IN}] win, float[{IN}, {WIDTH}] wout)
  => (float[batch, 1, {IN}] y, float[batch, {WIDTH}] t) {{
    turned = Transpose <perm = [1, 0]> (win)
    p = MatMul (x, turned)
    axes = Constant <value_ints = [1]> ()
    p0 = Squeeze (p, axes)
    bent = Tanh (s)
    t = Add (bent, p0)
    u = Unsqueeze (t, axes)
    turned_back = Transpose <perm = [1, 0]> (wout)
    y = MatMul (u, turned_back)
}}
"""
"""t = tanh(s) + W_in x; y = W_out t: a projection on each side of a state."""


@pytest.fixture
def model() -> ir.Model:
    """Two layers of one kind, with weights of their own."""
    step = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(STEP))).graph
    body = recurrence.function("Kind_0", step, recurrence.Signature((1,), 1, 2, (1,)))
    x = ir.val("x", ir.DataType.FLOAT, ["batch", "sequence", IN])
    valid = ir.val("valid", ir.DataType.BOOL, ["batch", "sequence"])
    states = [ir.val(f"s{i}", ir.DataType.FLOAT, ["batch", WIDTH]) for i in range(2)]
    weights, nodes, value = [], [], x
    for layer, state in enumerate(states):
        pair = []
        for number, (name, shape) in enumerate((("win", (WIDTH, IN)), ("wout", (IN, WIDTH)))):
            tensor = ir.tensor(draw(*shape, seed=2 * layer + number, scale=0.4), name=f"{layer}.{name}")
            pair.append(ir.val(f"{layer}.{name}", ir.DataType.FLOAT, shape, const_value=tensor))
        weights += pair
        node = ir.node(
            recurrence.NAME, [value, state, valid, *pair], domain=DOMAIN, overload="Kind_0", num_outputs=2,
            name=f"layers.{layer}/Recurrence",
        )  # fmt: skip
        for output, name, dims in zip(node.outputs, (f"y{layer}", f"t{layer}"), (x.shape, state.shape), strict=True):
            output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), dims
        nodes.append(node)
        value = node.outputs[0]
    outputs = [value, *(node.outputs[1] for node in nodes)]
    graph = ir.Graph(
        [x, valid, *states], outputs, nodes=nodes, initializers=weights, opset_imports={"": OPSET, DOMAIN: VERSION}
    )
    return ir.Model(graph, ir_version=10, functions=[body])


@pytest.fixture
def feeds() -> dict[str, Array]:
    """A full row, one that ends early, one of padding alone; states that are not empty."""
    valid = np.arange(SEQ) < np.array([[SEQ], [2], [0]])
    states = {f"s{i}": draw(BATCH, WIDTH, seed=20 + i) for i in range(2)}
    return {"x": draw(BATCH, SEQ, IN, seed=10), "valid": valid, **states}


def expected(model: ir.Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """The definition, token by token."""
    weights = {
        name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value
    }
    x, states = feeds["x"], [feeds["s0"].copy(), feeds["s1"].copy()]
    for layer in range(2):
        y = np.zeros_like(x)
        for token in range(SEQ):
            new = np.tanh(states[layer]) + x[:, token] @ weights[f"{layer}.win"].T
            y[:, token] = new @ weights[f"{layer}.wout"].T
            states[layer] = np.where(feeds["valid"][:, token, None], new, states[layer])
        x = y
    return {"y1": x, "t0": states[0], "t1": states[1]}


def valid_only(results: dict[str, Array], valid: Array) -> dict[str, Array]:
    return {
        name: np.where(valid[..., None], array, 0) if array.ndim == 3 else array for name, array in results.items()
    }


def test_the_projections_leave_the_scan_and_fold(model: ir.Model, feeds: dict[str, Array]) -> None:
    wanted, valid = expected(model, feeds), feeds["valid"]
    wanted = valid_only(wanted, valid)
    close(valid_only(run(model, feeds), valid), wanted)
    tally = apply(InlineRecurrence(), model)
    assert tally.fired == {"layers": 2}
    assert not model.functions
    assert operators(model).count("Scan") == 2
    assert operators(model).count("MatMul") == 4
    close(valid_only(run(model, feeds), valid), wanted)
    FoldConstants()(model)
    assert "Transpose" not in operators(model)
    close(valid_only(run(model, feeds), valid), wanted)


def test_a_scan_holds_no_product_of_weights(model: ir.Model) -> None:
    apply(InlineRecurrence(), model)
    scan = next(node for node in model.graph if node.op_type == "Scan")
    inside = [node.op_type for node in scan.attributes["body"].as_graph()]
    assert "MatMul" not in inside
    assert {"Tanh", "Add", "Where"} <= set(inside)


def test_bodies_of_other_operators_stay(model: ir.Model) -> None:
    body = cached_attention.function(cached_attention.Variant())
    model.functions[body.identifier()] = body
    apply(InlineRecurrence(), model)
    assert list(model.functions) == [body.identifier()]


def test_a_graph_without_states_is_left_alone() -> None:
    assert left_alone(InlineRecurrence(), parse("agraph (float[2] x) => (float[2] y) { y = Relu (x) }")) == []
