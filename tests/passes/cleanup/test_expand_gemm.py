from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.passes.cleanup.expand_gemm import ExpandGemm
from llmc.passes.cleanup.fold_constants import FoldConstants
from llmc.passes.graph.graph_query import dims

from ..graphs import apply, close, draw, left_alone, node_of, operators, parse, run

FEEDS = {"x": draw(5, 16)}
CASES = {
    "a linear layer": ("y = Gemm<transB=1>(x, w)", (24, 16), ["Transpose", "MatMul"]),
    "with a bias": ("y = Gemm<transB=1>(x, w, b)", (24, 16), ["Transpose", "MatMul", "Add"]),
    "stored the other way": ("y = Gemm(x, w, b)", (16, 24), ["MatMul", "Add"]),
}


@pytest.mark.parametrize("name", CASES)
def test_it_expands(name: str) -> None:
    body, shape, wanted = CASES[name]
    model = parse(f"m (float[tokens, 16] x) => (y) {{ {body} }}", {"w": draw(*shape, seed=1), "b": draw(24, seed=2)})
    node_of(model, "Gemm").name = "layers.0.router/Gemm"
    before = run(model, FEEDS)
    assert apply(ExpandGemm(), model).fired == {"linear layers": 1}
    assert operators(model) == wanted
    assert [node.name for node in model.graph] == [f"layers.0.router/{op_type}" for op_type in wanted]
    for node in model.graph:
        made = node.outputs[0]
        assert dims(made) == ([16, 24] if node.op_type == "Transpose" else ["tokens", 24])
        assert made.dtype == ir.DataType.FLOAT
    close(run(model, FEEDS), before)


def test_the_transposed_weight_folds() -> None:
    model = parse("m (float[tokens, 16] x) => (y) { y = Gemm<transB=1>(x, w) }", {"w": draw(24, 16)}, lazy=True)
    before = run(model, FEEDS)
    apply(ExpandGemm(), model)
    FoldConstants()(model)
    assert operators(model) == ["MatMul"]
    close(run(model, FEEDS), before)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm<alpha=2.0>(x, w)",
        "y = Gemm<beta=0.5>(x, w, b)",
        "t = Transpose<perm=[1,0]>(x)\n y = Gemm<transA=1>(t, w)",
        "s = Abs(w)\n y = Gemm(x, s)",
        "y = llmc.Gemm(x, w)",
    ],
)
def test_what_is_no_plain_linear_layer_is_left_alone(body: str) -> None:
    model = parse(f"m (float[tokens, 16] x) => (y) {{ {body} }}", {"w": draw(16, 24), "b": draw(24)})
    assert left_alone(ExpandGemm(), model) == []
