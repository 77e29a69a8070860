from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.lazy_weight import LazyWeight
from llmc.passes.convert_float import ConvertFloat

from .graphs import apply, close, draw, left_alone, parse, run

TEXT = """m ({half}[n, 16] x) => ({half}[n, 8] y) {{
    h = MatMul(x, w)
    f = Cast<to=1>(h)
    t = Tanh(f)
    c = Cast<to={number}>(t)
    y = Mul(c, two)
}}"""


def make(half: str, *, lazy: bool) -> ir.Model:
    dtype, number = (np.float16, 10) if half == "float16" else (ml_dtypes.bfloat16, 16)
    weights = {"w": draw(16, 8, scale=0.3).astype(dtype), "two": np.asarray(2, dtype)}
    return parse(TEXT.format(half=half, number=number), weights, lazy=lazy)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_everything_becomes_float32(half: str, lazy: bool) -> None:
    model = make(half, lazy=lazy)
    tally = apply(ConvertFloat(), model)
    assert (tally.fired["weights"], tally.fired["casts"]) == (2, 1)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(o for n in model.graph for o in n.outputs)]
    assert {value.dtype for value in values} == {ir.DataType.FLOAT}
    assert all(isinstance(value.const_value, LazyWeight) for value in model.graph.initializers.values())


def test_numbers_are_those_of_float32() -> None:
    """The half-precision weights are exact in float32; so the new graph is nearer to the truth than the old one."""
    model = make("float16", lazy=True)
    x = draw(3, 16).astype(np.float16)
    before = run(model, {"x": x})["y"]
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    exact = np.tanh(x.astype(np.float32) @ weight.numpy().astype(np.float32)) * 2
    apply(ConvertFloat(), model)
    after = run(model, {"x": x.astype(np.float32)})
    close(after, {"y": exact}, rtol=1e-6, atol=1e-6)
    close({"y": before.astype(np.float32)}, after, rtol=0, atol=5e-3)


def test_a_float32_graph_is_left_alone() -> None:
    model = parse("m (float[n, 16] x, int64[n] i) => (y) { y = MatMul(x, w) }", {"w": draw(16, 8)})
    assert left_alone(ConvertFloat(), model) == []
