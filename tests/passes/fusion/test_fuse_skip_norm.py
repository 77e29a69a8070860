from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.passes.fusion.fuse_skip_norm import FuseSkipNorm

from ..graphs import apply, close, draw, draw_all, left_alone, node_of, operators, parse, run

WEIGHTS = {
    "w": draw(16), "w2": draw(16, seed=1), "bias": draw(16, seed=2), "one": draw(1, seed=3),
    "block": draw(2, 3, 16, seed=4),
}  # fmt: skip
INPUTS = """float[batch, seq, 16] x, float[batch, seq, 16] r, float[16] row, float[a, b, 16] other, float[4, 16] flat,
    float[2, 3, 16] fixed"""
BROADCASTS = "the addition before it broadcasts, or its shape is not known"
BLOCK = "s = Add(x, r)\ny = RMSNormalization<axis=-1, epsilon=%s>(s, w)"


def make(body: str, outputs: str = "y, s") -> ir.Model:
    return parse(f"m ({INPUTS}) => ({outputs}) {{ {body} }}", WEIGHTS)


def feeds(batch: int = 2, seq: int = 3) -> dict[str, object]:
    sizes = {"x": (batch, seq, 16), "r": (batch, seq, 16), "row": (16,), "other": (batch, 1, 16), "flat": (4, 16)}
    return dict(draw_all(sizes | {"fixed": (2, 3, 16)}, seed=9))


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), seq=st.integers(1, 5), epsilon=st.sampled_from(["1e-6", "1e-5", "0.5"]))
def test_it_matches_and_numbers_agree(batch: int, seq: int, epsilon: str) -> None:
    """The sum is the residual stream, which goes on."""
    model = make(BLOCK % epsilon)
    for node in model.graph:
        node.name = f"layers.0/{node.op_type}"
    before = run(model, feeds(batch, seq))
    tally = apply(FuseSkipNorm(), model)
    assert tally.fired == tally.expected == {"skip_norm": 1}
    assert operators(model) == ["com.microsoft::SkipSimplifiedLayerNormalization"]
    fused = node_of(model, "SkipSimplifiedLayerNormalization")
    assert fused.name == "layers.0/RMSNormalization"
    assert [value.name for value in fused.outputs] == ["y", "", "", "s"], "mean and deviation are absent"
    for value in (fused.outputs[0], fused.outputs[3]):
        assert (value.dtype, value.shape) == (ir.DataType.FLOAT, model.graph.inputs[0].shape)
    assert [value.name for value in model.graph.outputs] == ["y", "s"]
    close(run(model, feeds(batch, seq)), before)


def test_the_default_epsilon_is_the_norms() -> None:
    model = make("s = Add(x, r)\ny = RMSNormalization(s, w)")
    before = run(model, feeds())
    apply(FuseSkipNorm(), model)
    assert node_of(model, "SkipSimplifiedLayerNormalization").attributes.get_float("epsilon") == pytest.approx(1e-5)
    close(run(model, feeds()), before)


def test_a_chain_of_blocks() -> None:
    body = f"{BLOCK % '1e-6'}\nt = Tanh(y)\ns2 = Add(s, t)\ny2 = RMSNormalization<axis=2>(s2, w2)"
    model = make(body, "y2, s2")
    before = run(model, feeds())
    assert apply(FuseSkipNorm(), model).fired == {"skip_norm": 2}
    close(run(model, feeds()), before)


def test_a_scale_that_is_computed_after_the_addition() -> None:
    model = make("s = Add(x, r)\nscale = Add(w, one)\ny = RMSNormalization(s, scale)")
    before = run(model, feeds())
    apply(FuseSkipNorm(), model)
    close(run(model, feeds()), before)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = Add(x, bias)\ny = RMSNormalization(s, w)", "the addition before it adds a constant"),
        ("s = Add(bias, x)\ny = RMSNormalization(s, w)", "the addition before it adds a constant"),
        ("s = Add(fixed, block)\ny = RMSNormalization(s, w)", "the addition before it adds a constant"),
        ("s = Add(block, fixed)\ny = RMSNormalization(s, w)", "the addition before it adds a constant"),
        ("s = Add(x, row)\ny = RMSNormalization(s, w)", BROADCASTS),
        ("s = Add(x, other)\ny = RMSNormalization(s, w)", BROADCASTS),
        ("s = Add(flat, flat)\ny = RMSNormalization(s, w)", BROADCASTS),
        ("s = Add(x, r)\ny = RMSNormalization<axis=1>(s, w)", "it does not normalize the last axis"),
        ("s = Add(x, r)\ny = RMSNormalization<axis=-2>(s, w)", "it does not normalize the last axis"),
        (
            "s0 = Add(x, r)\ns = Cast<to=1>(s0)\ny = RMSNormalization(s, w)",
            "Cast lies between it and the addition",
        ),
        (
            "s0 = Add(x, r)\ns = Mul(s0, one)\ny = RMSNormalization(s, w)",
            "Mul lies between it and the addition",
        ),
    ],
    ids=[
        "bias", "bias first", "constant of the shape", "constant of the shape first", "row", "other sizes",
        "two axes", "axis", "axis from the end", "cast", "constant factor",
    ],
)  # fmt: skip
def test_near_misses(body: str, reason: str) -> None:
    model = make(body)
    assert left_alone(FuseSkipNorm(), model) == [reason]
    assert FuseSkipNorm()(model).tally.expected == {"skip_norm": 1}


@pytest.mark.parametrize(
    ("between", "op_type"),
    [
        ("Identity(s0)", "Identity"),
        ("Div(s0, one)", "Div"),
        ("Mul(one, s0)", "Mul"),
        ("Reshape(s0, same)", "Reshape"),
        ("Transpose<perm=[1, 0, 2]>(s0)", "Transpose"),
        ("Expand(s0, ones)", "Expand"),
        ("Unsqueeze(s0, axis)", "Unsqueeze"),
    ],
)
def test_what_lies_between_is_named(between: str, op_type: str) -> None:
    constants = {"same": np.asarray([0, 0, 16]), "ones": np.asarray([1, 1, 1]), "axis": np.asarray([1])}
    body = f"s0 = Add(x, r)\ns = {between}\ny = RMSNormalization(s, w)"
    model = parse(f"m ({INPUTS}) => (y, s) {{ {body} }}", {**WEIGHTS, **constants})
    assert left_alone(FuseSkipNorm(), model) == [f"{op_type} lies between it and the addition"]


def test_dimensions_without_a_name_may_differ() -> None:
    model = make(BLOCK % "1e-6")
    for value in model.graph.inputs[:2]:
        value.shape = ir.Shape([None, None, 16])
    assert left_alone(FuseSkipNorm(), model) == [BROADCASTS]


def test_an_addition_that_feeds_two_norms() -> None:
    model = make("s = Add(x, r)\ny = RMSNormalization(s, w)\ny2 = RMSNormalization(s, w2)", "y, y2")
    assert left_alone(FuseSkipNorm(), model) == ["the addition before it feeds another norm, too"] * 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_shape_that_is_not_known_may_differ(which: int) -> None:
    model = make(BLOCK % "1e-6")
    model.graph.inputs[which].shape = None
    assert left_alone(FuseSkipNorm(), model) == [BROADCASTS]


@pytest.mark.parametrize(
    "body",
    [
        "s = Mul(x, r)\ny = RMSNormalization(s, w)",
        "s = Add(x, r)\ny = Tanh(s)",
        "s0 = Add(x, r)\ns = Mul(s0, x)\ny = RMSNormalization(s, w)",
        "s = Add(x, r)\ny = llmc.RMSNormalization(s, w)",
        "s = llmc.Add(x, r)\ny = RMSNormalization(s, w)",
    ],
    ids=["a product", "no norm", "two factors between", "another norm", "another addition"],
)
def test_other_places_are_no_sites(body: str) -> None:
    model = make(body)
    assert left_alone(FuseSkipNorm(), model) == []
    assert not FuseSkipNorm()(model).tally.expected
