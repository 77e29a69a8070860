from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.experts.routing_weights import chooses_experts, is_nonnegative, sums_to_one

from ..graphs import Array, draw, parse

CONSTANTS: dict[str, Array] = {
    "up": np.asarray([0.0, 1.0, 2.0], np.float32),
    "down": np.asarray([1.0, -1.0, 2.0], np.float32),
    "two": np.asarray([2], np.int64),
    "last": np.asarray([-1], np.int64),
    "first": np.asarray([0], np.int64),
    "nought": np.asarray(0.0, np.float32),
    "unknown": np.asarray([1.0, np.nan, 2.0], np.float32),
    "both": np.asarray([1, 0], np.int64),
}


def value_of(body: str) -> ir.Value:
    """The value ``w`` of a graph over x [tokens, 3] and z [tokens, 3], of any sign."""
    text = f"m (float[tokens, 3] x, float[tokens, 3] z) => (w) {{ {body} }}"
    weights = {name: array for name, array in CONSTANTS.items() if name in body}
    return parse(text, weights).graph.outputs[0]


@pytest.mark.parametrize(
    "body",
    [
        "w = Softmax(x)",
        "a = Sigmoid(x)\nw, i = TopK(a, two)",
        "a = Sigmoid(x)\nv, i = TopK(x, two)\nw = GatherElements<axis=1>(a, i)",
        "a = Exp(x)\ns = ReduceSum(a, last)\nw = Div(a, s)",
        "a = Softplus(x)\nb = Sqrt(a)\nw = Mul(b, up)",
        "w = Mul(x, x)",
        "w = Max(x, nought)",
        "w = Clip(x, nought)",
        "a = Relu(x)\nb = Abs(z)\nw = Add(a, b)",
        "a = Relu(x)\nc = Less(x, z)\nw = Where(c, a, nought)",
        "c = Less(x, z)\nw = Cast<to=1>(c)",
        "a = Softmax(x)\nb = Transpose<perm=[1, 0]>(a)\nw = Cast<to=1>(b)",
        "a = Sigmoid(x)\nb, w = Split<axis=0, num_outputs=2>(a)",
        "a = Relu(x)\nb = Exp(z)\nw = Div(a, b)",
        "a = Relu(x)\nb = Abs(z)\nw = Min(a, b)",
        "a = Relu(x)\nw = Max(z, a)",
        "a = Relu(x)\nb = Abs(z)\nw = Concat<axis=0>(a, b)",
        "a = Relu(x)\nb = Abs(z)\ni = Cast<to=7>(z)\nw = ScatterElements(a, i, b)",
        "a = Sigmoid(x)\nw = Pow(a, down)",
    ],
)
def test_what_cannot_be_below_zero(body: str) -> None:
    assert is_nonnegative(value_of(body))


@pytest.mark.parametrize(
    "body",
    [
        "w = Identity(x)",
        "w, i = TopK(x, two)",
        "a = Sigmoid(x)\nw = Sub(a, nought)",
        "a = Sigmoid(x)\nw = Mul(a, down)",
        "a = Sigmoid(x)\nw = Add(a, x)",
        "w = Mul(x, z)",
        "w = Tanh(x)",
        "a = Relu(x)\nc = Less(x, z)\nw = Where(c, a, x)",
        "w = com.microsoft.QuickGelu(x)",
        "w = Clip(x, , nought)",
        "a = Relu(x)\nw = Div(a, z)",
        "a = Exp(x)\nw = Div(z, a)",
        "a = Relu(x)\nw = Min(a, z)",
        "a = Relu(x)\nw = Concat<axis=0>(a, z)",
        "a = Relu(x)\nw = Concat<axis=0>(z, a)",
        "a = Relu(x)\ni = Cast<to=7>(z)\nw = ScatterElements(a, i, z)",
        "a = Relu(x)\ni = Cast<to=7>(z)\nw = ScatterElements(z, i, a)",
        "a = Relu(x)\nc = Less(x, z)\nw = Where(c, x, a)",
        "a = Sigmoid(x)\nv, w = TopK(a, two)",
        "w = com.microsoft.Softmax(x)",
        "a = Sigmoid(x)\nw = Mul(a, unknown)",
    ],
)
def test_what_may_be_below_zero(body: str) -> None:
    assert not is_nonnegative(value_of(body))


def test_nothing_is_known_of_nothing() -> None:
    assert not is_nonnegative(None)
    assert not sums_to_one(None)


@pytest.mark.parametrize(
    ("body", "known"),
    [
        ("w = Softmax(x)", True),
        ("w = Softmax<axis=1>(x)", True),
        ("a = Softmax(x)\nw = Cast<to=1>(a)", True),
        ("a = Exp(x)\ns = ReduceSum<keepdims=1>(a, last)\nw = Div(a, s)", True),
        ("w = Softmax<axis=0>(x)", False),
        ("a = Softmax(x)\nw, i = TopK(a, two)", False),
        ("a = Exp(x)\ns = ReduceSum<keepdims=1>(a, first)\nw = Div(a, s)", False),
        ("a = Exp(x)\ns = ReduceSum<keepdims=1>(a)\nw = Div(a, s)", False),
        ("a = Exp(x)\ns = ReduceSum<keepdims=1>(a, both)\nw = Div(a, s)", False),
        ("a = Exp(x)\ns = ReduceSum<keepdims=0>(a, last)\nw = Div(a, s)", False),
        ("a = Exp(x)\ns = ReduceSum(a, last)\nw = Div(a, s)", True),
        ("a = Exp(x)\ns = ReduceSum<keepdims=1>(x, last)\nw = Div(a, s)", False),
        ("a = Exp(x)\nw = Div(a, z)", False),
        ("w = Identity(x)", False),
    ],
)
def test_sums(body: str, known: bool) -> None:
    assert sums_to_one(value_of(body)) is known


def test_a_cast_lends_its_shape() -> None:
    value = value_of("a = Softmax<axis=1>(x)\nw = Cast<to=1>(a)")
    node = value.producer()
    assert node is not None
    assert node.inputs[0] is not None
    node.inputs[0].shape = None
    assert sums_to_one(value)


@pytest.mark.parametrize(
    ("body", "chooses"),
    [
        ("s = Softmax<axis=-1>(p)\n v, i = TopK(s, two)", True),
        ("s = Sigmoid(p)\n a = Add(s, b)\n g = Reshape(a, groups)\n v, i = TopK(g, two)", True),
        ("s = Sigmoid(p)\n v = MatMul(s, w)\n q, i = TopK(v, two)", False),
        ("v = Relu(p)\n i = ArgMax(v)", False),
    ],
)
def test_which_product_chooses_experts(body: str, chooses: bool) -> None:
    weights = {"w": draw(8, 8), "b": draw(8), "two": np.asarray([2]), "groups": np.asarray([0, 2, 4])}
    model = parse(f"m (float[tokens, 8] x) => (v, i) {{ p = MatMul(x, w)\n {body} }}", weights)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert chooses_experts(product) is chooses
