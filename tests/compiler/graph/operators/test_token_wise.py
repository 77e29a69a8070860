"""Which part of a step each node lands in, by the name of what it makes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators.domain import OPSET
from llmc.compiler.graph.operators.token_wise import partition

HEADER = f'<ir_version: 10, opset_import: ["": {OPSET}, "com.microsoft": 1]>'
INPUTS = """float[b, 1, 4] x, float[b, 1] z, float[b, 1, 4] s, float[b, 5, 4] s5, float[b, 4] s2, float[4, 4] w,
    float[1, 1] w1, float[1, 4, 4] w3, float[4] g, float[1, 1, 4] row, float[1, 5, 4] rows"""
SEQUENCES, WEIGHTS = ("x", "z"), ("w", "w1", "w3", "g", "row", "rows")


def parts(body: str, outputs: str = "y, t", known: str = "", unknown: str = "") -> dict[str, str]:
    """Outputs that begin with t are states, with y results along the axis of tokens, others along another."""
    proto = onnx.parser.parse_model(f"{HEADER} step ({INPUTS}) => ({outputs}) {{ {body} }}")
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(proto)).graph
    values = {value.name or "": value for node in graph for value in node.outputs}
    if known:
        values[known].shape = ir.Shape(["b", 1, 4])
    if unknown:
        values[unknown].shape = None
    inputs = {value.name: value for value in graph.inputs}
    states, results = ([v for v in graph.outputs if (v.name or "").startswith(kind)] for kind in "ty")
    made = partition(
        list(graph), [inputs[name] for name in SEQUENCES], [inputs[name] for name in WEIGHTS], states, results
    )
    found = {"static": made.static, "before": made.before, "core": made.core, "after": made.after}
    assert sum(map(len, found.values())) == len(graph)
    return {node.outputs[0].name or "": part for part, nodes in found.items() for node in nodes}


BEFORE = {
    "a product with a weight": "v = MatMul(x, w)",
    "arithmetic with a vector": "v = Mul(x, g)",
    "arithmetic with a row": "v = Add(row, x)",
    "a norm": "v = RMSNormalization(x, g)",
    "a softmax of a token": "v = Softmax<axis=2>(x)",
    "a softmax whose axis is not stated": "v = Softmax(x)",
    "what is joined of one token": "v = Concat<axis=-1>(x, x)",
}
CORE = {
    "a product with a weight of three axes": "v = MatMul(x, w3)",
    "a weight times tokens": "v = MatMul(w1, x)",
    "a product of tokens": "o = Mul(x, g)\n v = MatMul(w1, o)",
    "a weight with an axis of tokens": "v = Mul(x, rows)",
    "a softmax over tokens": "v = Softmax<axis=1>(x)",
    "a split whose axis is not stated": "v = Split<num_outputs=1>(x)",
    "tokens that are joined": "v = Concat<axis=1>(x, x)",
    "a norm whose scale is a token": "v = RMSNormalization(x, x)",
    "a number per token": "v = Exp(z)",
    "a reduction": "v = ReduceSum<keepdims=1>(x)",
    "what meets a state": "v = Mul(x, s)",
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_treats_each_token_by_itself_runs_before(name: str) -> None:
    assert parts(f"{BEFORE[name]}\n t = Add(s, x)\n q = Exp(t)\n y = ReduceSum<keepdims=1>(v)")["v"] == "before"


@pytest.mark.parametrize("name", CORE)
def test_all_else_runs_token_by_token(name: str) -> None:
    assert parts(f"{CORE[name]}\n t = Add(s, v)\n y = Exp(v)")["v"] == "core"


def test_what_depends_on_weights_alone_is_computed_once() -> None:
    made = parts("turned = Transpose<perm=[1, 0]>(w)\n v = MatMul(x, turned)\n t = Add(s, v)\n y = Exp(x)")
    assert made == {"turned": "static", "v": "before", "t": "core", "y": "before"}


def test_what_comes_of_a_state_alone_runs_after() -> None:
    made = parts("t = Add(s, x)\n v = MatMul(t, w)\n y = Sigmoid(v)")
    assert made == {"t": "core", "v": "after", "y": "after"}


def test_what_a_state_is_made_of_does_not_run_after() -> None:
    made = parts("v = MatMul(s, w)\n t = Add(v, x)\n y = Exp(v)")
    assert made == {"v": "core", "t": "core", "y": "after"}


def test_what_another_part_of_the_core_reads_does_not_run_after() -> None:
    """However far down: ``far`` reads ``n``, which reads ``v``."""
    made = parts(
        "t = Add(s, x)\n v = Exp(t)\n n = Neg(v)\n far = ReduceSum<keepdims=1>(n)\n y = Mul(v, v)", "y, far, t"
    )
    assert made == {"t": "core", "v": "core", "n": "core", "far": "core", "y": "after"}


def test_a_result_along_another_axis_is_made_in_the_core() -> None:
    made = parts("t = Add(s, x)\n other = Exp(t)\n y = Neg(t)", "y, other, t")
    assert made == {"t": "core", "other": "core", "y": "after"}


@pytest.mark.parametrize(
    "body",
    [
        "t = Add(s5, x)\n y = Exp(t)",
        "t = Neg(s2)\n n = ReduceSum<keepdims=1>(t, axis)\n u = Add(x, s)\n y = Add(u, n)",
    ],
    ids=["several tokens", "fewer axes"],
)
def test_what_comes_out_in_another_shape_is_made_in_the_core(body: str) -> None:
    axis = "axis = Constant<value_ints=[1]>()\n " if "axis" in body else ""
    assert parts(axis + body)["y"] == "core"


def test_a_shape_that_is_not_known_is_none_of_tokens() -> None:
    body = "v = Mul(x, g)\n t = Add(s, v)\n y = Exp(t)"
    assert parts(body)["v"] == "before"
    assert parts(body, unknown="v")["v"] == "core"


def test_an_operator_of_another_domain_is_not_known() -> None:
    assert parts("v = com.microsoft.Gelu(x)\n t = Add(s, v)\n y = Exp(x)", known="v")["v"] == "core"
