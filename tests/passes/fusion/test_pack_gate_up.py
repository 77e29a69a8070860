from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.fusion.fuse_silu import FuseSilu
from llmc.passes.fusion.pack_gate_up import PackGateUp, _earlier
from llmc.passes.graph_pass import NearMiss

from ..graphs import apply, close, draw, draw_all, left_alone, node_of, operators, parse, run

WEIGHTS = draw_all({"g_w": (16, 24), "u_w": (16, 24), "g_b": (24,), "u_b": (24,)})
SILU = "s = Sigmoid(gate)\na = Mul(gate, s)"
ACTIVATIONS = {
    "silu": SILU,
    "silu the other way round": "s = Sigmoid(gate)\na = Mul(s, gate)",
    "gelu": 'a = Gelu<approximate="tanh">(gate)',
    "relu": "a = Relu(gate)",
    "fused silu": "a = com.microsoft.QuickGelu<alpha=1.0>(gate)",
    "sigmoid": "a = Sigmoid(gate)",
    "hard swish": "a = HardSwish(gate)",
    "tanh": "a = Tanh(gate)",
}
PLAIN = "gate = MatMul(x, g_w)\nup = MatMul(x, u_w)"


def make(
    projections: str = PLAIN, activation: str = SILU, product: str = "y = Mul(a, up)", **more: object
) -> ir.Model:
    text = "m (float[batch, seq, 16] x, float[batch, seq, 16] z) => (float[batch, seq, 24] y)"
    return parse(f"{text} {{ {projections}\n{activation}\n{product} }}", WEIGHTS, **more)


@settings(max_examples=12, deadline=None)
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    product=st.sampled_from(["y = Mul(a, up)", "y = Mul(up, a)"]),
    up_first=st.booleans(),
    lazy=st.booleans(),
    batch=st.integers(1, 3),
    seq=st.integers(1, 5),
)
def test_it_matches_and_numbers_agree(
    activation: str, product: str, up_first: bool, lazy: bool, batch: int, seq: int
) -> None:
    projections = "\n".join(sorted(PLAIN.split("\n"), reverse=up_first))
    model = make(projections, ACTIVATIONS[activation], product, lazy=lazy)
    feeds = draw_all({"x": (batch, seq, 16), "z": (batch, seq, 16)}, seed=9)
    before = run(model, feeds)
    tally = apply(PackGateUp(), model)
    assert tally.fired == tally.expected == {"gate_up": 1}
    apply(RemoveDeadCode(), model)
    assert operators(model).count("MatMul") == 1
    split = node_of(model, "Split")
    assert [list(value.shape) for value in split.outputs] == [["batch", "seq", 24]] * 2
    assert list(split.inputs[0].shape) == ["batch", "seq", 48]
    assert {value.dtype for value in (*split.outputs, *split.inputs[:1])} == {ir.DataType.FLOAT}
    close(run(model, feeds), before)


def test_biases_are_stacked_too() -> None:
    model = make("g0 = MatMul(x, g_w)\ngate = Add(g0, g_b)\nu0 = MatMul(x, u_w)\nup = Add(u_b, u0)")
    feeds = draw_all({"x": (2, 3, 16), "z": (2, 3, 16)}, seed=9)
    before = run(model, feeds)
    apply(PackGateUp(), model)
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["MatMul", "Add", "Split", "Sigmoid", "Mul", "Mul"]
    close(run(model, feeds), before)


def test_silu_is_fused_after_it() -> None:
    model = make()
    feeds = draw_all({"x": (2, 3, 16), "z": (2, 3, 16)}, seed=9)
    before = run(model, feeds)
    for graph_pass in (PackGateUp(), FuseSilu(), RemoveDeadCode()):
        apply(graph_pass, model)
    assert operators(model) == ["MatMul", "Split", "com.microsoft::QuickGelu", "Mul"]
    close(run(model, feeds), before)


def test_names_come_from_the_weights() -> None:
    model = make()
    for old, new in (("g_w", "layers.0.mlp.gate_proj.weight"), ("u_w", "layers.0.mlp.up_proj.weight")):
        value = model.graph.initializers.pop(old)
        value.name = new
        model.graph.initializers[new] = value
    apply(PackGateUp(), model)
    assert "layers.0.mlp.gate_up_proj.weight" in model.graph.initializers
    assert node_of(model, "Split").name == "layers.0.mlp.gate_up_proj/Split"


@pytest.mark.parametrize(
    ("projections", "reason"),
    [
        (PLAIN.replace("MatMul(x, u_w)", "MatMul(z, u_w)"), "its projections do not read the same input"),
        ("g0 = MatMul(x, g_w)\ngate = Add(g0, g_b)\nup = MatMul(x, u_w)", "only some of its projections have a bias"),
        (
            "g = MatMul(x, g_w)\ngate = Neg(g)\nup = MatMul(x, u_w)",
            "what is activated is no projection with a constant weight",
        ),
        (
            "gate = MatMul(x, g_w)\nu = MatMul(x, u_w)\nup = Neg(u)",
            "what is multiplied with the activation is no projection with a constant weight",
        ),
    ],
    ids=["other input", "one bias", "gate", "up"],
)
def test_near_misses(projections: str, reason: str) -> None:
    model = make(projections)
    assert left_alone(PackGateUp(), model) == [reason]
    assert PackGateUp()(model).tally.expected == {"gate_up": 1}


UNKNOWN = "neither {} nor {} is an activation that the pass knows"


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("a = Sin(gate)\ny = Mul(a, up)", [UNKNOWN.format("Sin", "MatMul")]),
        ("a = Sin(gate)\ny = Mul(up, a)", [UNKNOWN.format("MatMul", "Sin")]),
        ("a = Sin(gate)\nb = Mul(a, g_b)\nu = Neg(up)\ny = Mul(b, u)", [UNKNOWN.format("Mul", "Neg")]),
        ("a = Sin(gate)\nb = Cos(gate)\ny = Mul(a, b)", []),
        ("a = Sin(gate)\nb = ReduceMean<keepdims=1>(up, last)\ny = Mul(a, b)", []),
        ("a = Sin(gate)\nb = Mul(up, gate)\ny = Mul(a, b)", []),
        ("a = Sin(gate)\ny = Mul(a, x24)", []),
        ("a = Sin(gate)\nt = Abs(u_w)\nb = MatMul(x, t)\ny = Mul(a, b)", []),
    ],
    ids=[
        "gate first", "up first", "more on the way", "one projection", "broadcast", "two projections on one side",
        "an input", "computed weight",
    ],
)  # fmt: skip
def test_a_product_of_two_projections_without_a_known_activation(body: str, reasons: list[str]) -> None:
    """It looks gated where each side is one projection, changed element by element."""
    text = "m (float[batch, seq, 16] x, float[batch, seq, 24] x24) => (float[batch, seq, 24] y)"
    model = parse(f"{text} {{ {PLAIN}\n{body} }}", {**WEIGHTS, "last": np.asarray([-1])})
    assert left_alone(PackGateUp(), model) == reasons
    assert PackGateUp()(model).tally.expected == ({"gate_up": 1} if reasons else {})


def test_a_block_whose_activation_is_read_from_a_split_is_packed_already() -> None:
    body = "g, u = Split<axis=-1, num_outputs=2>(x)\na = Relu(g)\ny = Mul(a, u)"
    model = parse(f"m (float[batch, seq, 48] x) => (float[batch, seq, 24] y) {{ {body} }}")
    assert left_alone(PackGateUp(), model) == []
    assert not PackGateUp()(model).tally.expected


def test_a_symbolic_width_is_left_alone() -> None:
    model = make()
    model.graph.initializers["u_w"].shape = ir.Shape([16, "width"])
    assert left_alone(PackGateUp(), model) == ["its projections have a symbolic width"]


def test_projections_of_another_graph_are_left_alone() -> None:
    with pytest.raises(NearMiss, match="its projections are not in the graph"):
        _earlier(make().graph, None, None)


@pytest.mark.parametrize(
    "body",
    [
        "gate = MatMul(x, g_w)\ns = Sigmoid(gate)\ny = Mul(gate, s)",
        "gate = MatMul(x, g_w)\na = Tanh(gate)\ny = Mul(a, g_b)",
        "gate = MatMul(x, g_w)\nup = MatMul(x, u_w)\ny = Mul(gate, up)",
        "gate = MatMul(x, g_w)\nup = MatMul(x, u_w)\na = Relu(gate)\ny = Add(a, up)",
    ],
    ids=["silu alone", "a constant", "no activation", "a sum"],
)
def test_what_is_not_gated_is_no_site(body: str) -> None:
    model = parse(f"m (float[batch, seq, 16] x) => (float[batch, seq, 24] y) {{ {body} }}", WEIGHTS)
    assert left_alone(PackGateUp(), model) == []
    assert not PackGateUp()(model).tally.expected


def test_other_readers_of_a_projection_get_its_part() -> None:
    body = f"{PLAIN}\n{SILU}\ny = Mul(a, up)\nw = Tanh(up)"
    model = parse(f"m (float[batch, seq, 16] x) => (float[batch, seq, 24] y, w) {{ {body} }}", WEIGHTS)
    feeds = {"x": draw(2, 3, 16, seed=9)}
    before = run(model, feeds)
    apply(PackGateUp(), model)
    close(run(model, feeds), before)
