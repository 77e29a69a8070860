"""Values whose type is not recorded, as passes leave them: the operator that makes them tells."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.passes.lowering.convert_float import INTEGER_RESULTS, ConvertFloat

from ..graphs import apply, draw, operators, parse


def made_by(model: ir.Model, name: str) -> ir.Value:
    return next(output for node in model.graph for output in node.outputs if output.name == name)


OF_FLOATS = {
    "Shape": "Shape(x)",
    "Size": "Size(x)",
    "ArgMax": "ArgMax(x)",
    "ArgMin": "ArgMin(x)",
    "NonZero": "NonZero(x)",
    "Equal": "Equal(x, z)",
    "Less": "Less(x, z)",
    "Greater": "Greater(x, z)",
    "LessOrEqual": "LessOrEqual(x, z)",
    "GreaterOrEqual": "GreaterOrEqual(x, z)",
    "IsNaN": "IsNaN(x)",
    "IsInf": "IsInf(x)",
}


@pytest.mark.parametrize("op_type", OF_FLOATS)
def test_what_integers_and_truths_are_made_of_floats(op_type: str) -> None:
    model = parse(f"m (float[n, 8] x, float[n, 8] z) => (y, found) {{ y = Add(x, z)\nfound = {OF_FLOATS[op_type]} }}")
    made_by(model, "found").type = None
    apply(ConvertFloat("fp16"), model)
    assert made_by(model, "found").dtype is None
    assert made_by(model, "y").dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize("lazy", [True, False])
def test_what_a_checkpoint_holds_makes_activations_however_small_it_is(lazy: bool) -> None:
    """A small constant of the graph's own takes the type of what it meets, and here meets nothing."""
    model = parse("m (int64[n] ids) => (y) { y = Gather(table, ids) }", {"table": draw(8, 4)}, lazy=lazy)
    ConvertFloat("fp16")(model)
    half = ir.DataType.FLOAT16 if lazy else ir.DataType.FLOAT
    assert (made_by(model, "y").dtype, model.graph.initializers["table"].dtype) == (half, half)


def test_logic_makes_truths() -> None:
    assert set(OF_FLOATS) | {"Not", "And", "Or", "Xor"} == INTEGER_RESULTS


@pytest.mark.parametrize("value", ["", "<value = float[1] {3.0}>"], ids=["zeros by default", "a float"])
def test_what_is_computed_from_a_fill_of_floats_is_cast(value: str) -> None:
    body = f"""shape = Shape(x)
        fill = ConstantOfShape{value}(shape)
        other = Neg(fill)
        y = Mul(x, other)"""
    model = parse(f"m (float[n, 8] x) => (y, other) {{ {body} }}")
    for name in ("fill", "other"):
        made_by(model, name).type = None
    assert apply(ConvertFloat("fp16"), model).fired == {"casts added": 1, "values": 2}
    assert operators(model) == ["Shape", "ConstantOfShape", "Neg", "Cast", "Mul"]


def test_integers_that_fill_what_an_activation_is_gathered_by_are_not_cast() -> None:
    body = """shape = Shape(x)
        first = ConstantOfShape<value = int64[1] {0}>(shape)
        y = GatherElements<axis=1>(x, first)"""
    model = parse(f"m (float[n, 8] x) => (y) {{ {body} }}")
    made_by(model, "first").type = None
    assert apply(ConvertFloat("fp16"), model).fired == {"values": 2}
    assert operators(model) == ["Shape", "ConstantOfShape", "GatherElements"]
