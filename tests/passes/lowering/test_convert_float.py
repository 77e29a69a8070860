from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.passes.lowering.convert_float import ConvertFloat

from ..graphs import apply, close, draw, left_alone, node_of, operators, parse, run

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
    assert tally.contract == {"rounded_to": "fp16" if half == "float16" else "bf16"}
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
    assert ConvertFloat()(model).tally.contract == {}


# --- to half precision ----------------------------------------------------------------------------------------------

VOCABULARY, HIDDEN = 600, 16
HALVES = [
    pytest.param("fp16", ir.DataType.FLOAT16, np.float16, id="fp16"),
    pytest.param("bf16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16, id="bf16"),
]
DECODER = f"""m (int64[batch, seq] ids, float[batch, 2, past, 8] "past_key_values.0.key")
    => (float[batch, seq, {VOCABULARY}] logits, float[batch, 2, past, 8] "present.0.key") {{
    x = Gather(table, ids)
    norm = RMSNormalization<axis=-1, epsilon=1e-3>(x, scale)
    h = MatMul(norm, w)
    f = Cast<to=1>(h)
    t = Tanh(f)
    y = Mul(t, two)
    turned = Transpose<perm=[1, 0]>(table)
    logits = MatMul(y, turned)
    "present.0.key" = Mul("past_key_values.0.key", two)
}}"""
ANGLES = f"""m (float[batch, seq, {HIDDEN}] x, int64[batch, seq] positions)
    => (float[batch, seq, {HIDDEN}] y, angles) {{
    float_pos = Cast<to=1>(positions)
    column = Unsqueeze(float_pos, axis)
    angles = Mul(column, inv_freq)
    turned = Cos(angles)
    scaled = Mul(turned, two)
    h = Mul(x, scaled)
    g = Add(h, scaled)
    y = Mul(g, two)
}}"""


def decoder() -> ir.Model:
    weights = {
        "table": draw(VOCABULARY, HIDDEN, scale=0.5),
        "scale": 1 + draw(HIDDEN, seed=1, scale=0.1),
        "w": draw(HIDDEN, HIDDEN, seed=2, scale=0.3),
        "two": np.asarray(2, np.float32),
    }
    return parse(DECODER, weights)


def angles() -> ir.Model:
    inv_freq = (100.0 ** -np.linspace(0, 1, HIDDEN)).astype(np.float32)
    return parse(ANGLES, {"inv_freq": inv_freq, "axis": np.asarray([2]), "two": np.asarray(2, np.float32)})


def made_by(model: ir.Model, name: str) -> ir.Value:
    return next(output for node in model.graph for output in node.outputs if output.name == name)


def constants(model: ir.Model) -> dict[str, ir.DataType | None]:
    return {name: value.dtype for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize(("to", "half", "dtype"), HALVES)
def test_a_graph_that_an_embedding_feeds_is_entirely_half(to: Any, half: ir.DataType, dtype: Any) -> None:
    model = decoder()
    tally = apply(ConvertFloat(to), model)
    assert tally.fired == {"weights": 4, "casts": 1, "values": 10}
    assert tally.contract == {"rounded_to": to}
    values = [
        *model.graph.inputs, *model.graph.initializers.values(), *(o for n in model.graph for o in n.outputs)
    ]  # fmt: skip
    assert {value.dtype for value in values if value.name != "ids"} == {half}
    assert set(model.graph.initializers) == {"table", "scale", "w", "two"}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        assert value.const_value.dtype == half
        assert value.const_value.numpy().dtype == dtype
    assert operators(model) == operators(decoder()), "no casts are needed"
    assert node_of(model, "Cast").attributes.get_int("to") == int(half)


def test_numbers_are_those_of_half_precision() -> None:
    exact = decoder()
    feeds = {"ids": np.asarray([[5, 599, 0], [17, 17, 2]]), "past_key_values.0.key": draw(2, 2, 4, 8, seed=3)}
    before = run(exact, feeds)
    apply(ConvertFloat("fp16"), exact)
    after = run(exact, {**feeds, "past_key_values.0.key": feeds["past_key_values.0.key"].astype(np.float16)})
    assert {array.dtype for array in after.values()} == {np.dtype(np.float16)}
    close({name: array.astype(np.float32) for name, array in after.items()}, before, rtol=2e-3, atol=1e-2)
    assert np.abs(before["logits"]).max() > 1


@pytest.mark.parametrize("lazy", [False, True])
def test_weights_are_cast_when_they_are_written(lazy: bool) -> None:
    """Those that are large, and all that a checkpoint holds."""
    model = parse("m (float[n, 16] x) => (y) { h = MatMul(x, w) \n y = Mul(h, s) }",
                  {"w": draw(16, 300), "s": draw(300)}, lazy=lazy)  # fmt: skip
    apply(ConvertFloat("fp16"), model)
    assert isinstance(model.graph.initializers["w"].const_value, LazyWeight)
    assert isinstance(model.graph.initializers["s"].const_value, LazyWeight) == lazy


def test_what_comes_from_integers_stays_float32_and_is_cast_once_at_the_border() -> None:
    model = angles()
    tally = apply(ConvertFloat("fp16"), model)
    # Of x, h, g and y.
    assert tally.fired == {"weights": 1, "casts added": 1, "values": 4}
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert [(cast.name, cast.attributes.get_int("to")) for cast in casts[1:]] == [
        ("scaled/to_half", int(ir.DataType.FLOAT16))
    ]
    assert casts[0].attributes.get_int("to") == int(ir.DataType.FLOAT)
    assert casts[1].outputs[0].shape == made_by(model, "scaled").shape
    stay = {name: made_by(model, name).dtype for name in ("float_pos", "column", "angles", "turned", "scaled")}
    assert set(stay.values()) == {ir.DataType.FLOAT}
    assert {made_by(model, name).dtype for name in "hgy"} == {ir.DataType.FLOAT16}


def test_every_input_at_the_border_is_cast() -> None:
    body = "f = Cast<to=1>(p) \n c = Cos(f) \n s = Sin(f) \n y = Sum(c, x, s)"
    model = parse(f"m (float[n, 4] x, int64[n, 4] p) => (y) {{ {body} }}")
    assert apply(ConvertFloat("fp16"), model).fired["casts added"] == 2
    made = run(model, {"x": draw(2, 4).astype(np.float16), "p": np.arange(8).reshape(2, 4)})["y"]
    assert made.dtype == np.float16


def test_positions_keep_their_precision() -> None:
    """In half precision 8,191 would be 8,192, and its angle another one."""
    model = angles()
    feeds = {"x": draw(1, 2, HIDDEN), "positions": np.asarray([[8191, 2]])}
    before = run(model, feeds)
    apply(ConvertFloat("fp16"), model)
    after = run(model, {**feeds, "x": feeds["x"].astype(np.float16)})
    np.testing.assert_array_equal(after["angles"], before["angles"])
    np.testing.assert_allclose(after["y"].astype(np.float32), before["y"], rtol=0, atol=2e-2)


def test_a_constant_that_both_sides_use_is_kept_twice() -> None:
    model = angles()
    apply(ConvertFloat("fp16"), model)
    assert constants(model) == {
        "inv_freq": ir.DataType.FLOAT,
        "axis": ir.DataType.INT64,
        "two": ir.DataType.FLOAT,
        "two.1": ir.DataType.FLOAT16,
    }
    for maker, name in (("scaled", "two"), ("y", "two.1")):
        node = made_by(model, maker).producer()
        assert node is not None
        assert node.inputs[1] is model.graph.initializers[name]


def test_the_order_of_users_does_not_matter_for_names() -> None:
    """The half-precision product stands first, and whether the other is one shows only behind it."""
    text = "m (float[n, 16] x) => (y) { a = Mul(x, two) \n b = Tanh(a) \n c = Mul(two, b) \n y = Add(c, two) }"
    model = parse(text, {"two": np.asarray(2, np.float32)})
    assert apply(ConvertFloat("fp16"), model).fired["weights"] == 1
    assert constants(model) == {"two": ir.DataType.FLOAT16}


def test_a_tied_table_stays_one() -> None:
    model = decoder()
    apply(ConvertFloat("fp16"), model)
    table = model.graph.initializers["table"]
    assert {use.node.op_type for use in table.uses()} == {"Gather", "Transpose"}
    assert node_of(model, "Transpose").inputs[0] is table


@pytest.mark.parametrize(("to", "half", "dtype"), HALVES)
def test_constants_beyond_the_range_become_its_largest_value(to: Any, half: ir.DataType, dtype: Any) -> None:
    lowest, largest = np.finfo(np.float32).min, np.finfo(np.float32).max
    row = np.asarray([lowest, -np.inf, 1.5, largest, np.inf, -0.25], np.float32)
    model = parse("m (float[n, 6] x) => (float[n, 6] y) { y = Add(x, row) }", {"row": row})
    apply(ConvertFloat(to), model)
    tensor = model.graph.initializers["row"].const_value
    assert tensor is not None
    assert tensor.dtype == half
    content = tensor.numpy().astype(np.float32)
    limit = float(ml_dtypes.finfo(dtype).max)
    assert content.tolist() == [-limit, -limit, 1.5, limit, limit, -0.25]


def test_a_constant_of_4096_elements_is_no_weight_yet() -> None:
    """It is looked at, as a mask of a few thousand positions must be, and its ends are cut off."""
    for width, lowest in ((4096, np.finfo(np.float32).min), (4097, -1)):
        row = np.full(width, lowest, np.float32)
        row[7] = 0.5
        model = parse(f"m (float[n, {width}] x) => (y) {{ y = Add(x, row) }}", {"row": row})
        apply(ConvertFloat("fp16"), model)
        tensor = model.graph.initializers["row"].const_value
        assert tensor is not None
        assert isinstance(tensor, LazyWeight) == (width > 4096)
        if width == 4096:
            assert tensor.numpy()[[0, 7]].tolist() == [-65504, 0.5]


def test_a_constant_that_is_an_output_keeps_its_type() -> None:
    model = parse("m (float[n, 4] x) => (y) { y = Add(x, row) }", {"row": draw(4)})
    row = model.graph.initializers["row"]
    model.graph.outputs.append(row)
    apply(ConvertFloat("fp16"), model)
    assert (row.dtype, [value.dtype for value in model.graph.outputs]) == (
        ir.DataType.FLOAT, [ir.DataType.FLOAT16, ir.DataType.FLOAT]
    )  # fmt: skip
    assert constants(model) == {"row": ir.DataType.FLOAT, "row.1": ir.DataType.FLOAT16}


def test_a_cast_to_half_that_the_graph_has_stays_as_it_is() -> None:
    """What it makes is half whichever type the activations have, and stays so."""
    model = parse("m (float[n, 4] x) => (y, z) { y = Cast<to=10>(x) \n z = Tanh(x) }")
    apply(ConvertFloat("bf16"), model)
    assert node_of(model, "Cast").attributes.get_int("to") == int(ir.DataType.FLOAT16)
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.FLOAT16, ir.DataType.BFLOAT16]


def test_boolean_and_integer_results_keep_their_type() -> None:
    text = """m (float[n, 16] x) => (y, chosen, places, rounded, doubled, shape) {
        more = Greater(x, zero)
        y = Where(more, x, zero)
        top, places = TopK(x, k)
        chosen = Cast<to=9>(top)
        rounded = Cast<to=6>(x)
        doubled = Cast<to=11>(x)
        shape = Shape(x)
    }"""
    weights = {"zero": np.asarray(0, np.float32), "k": np.asarray([2])}
    types = {
        "more": ir.DataType.BOOL, "y": ir.DataType.FLOAT16, "top": ir.DataType.FLOAT16, "places": ir.DataType.INT64,
        "chosen": ir.DataType.BOOL, "rounded": ir.DataType.INT32, "doubled": ir.DataType.DOUBLE,
        "shape": ir.DataType.INT64,
    }  # fmt: skip
    model = parse(text, weights)
    apply(ConvertFloat("fp16"), model)
    assert {name: made_by(model, name).dtype for name in types} == types
    run(model, {"x": draw(3, 16).astype(np.float16)})
    # Passes leave types of what they make unrecorded; the operators then tell.
    model = parse(text, weights)
    for name in types:
        made_by(model, name).type = None
    apply(ConvertFloat("fp16"), model)
    found = {name: made_by(model, name).dtype for name in types}
    assert found == {name: dtype if dtype == ir.DataType.FLOAT16 else None for name, dtype in types.items()}


def test_results_of_unrecorded_type_are_cast_at_the_border() -> None:
    """As ALiBi's bias, which a pass makes from lengths."""
    model = angles()
    for name in ("float_pos", "column", "turned", "scaled"):
        made_by(model, name).type = None
    assert apply(ConvertFloat("fp16"), model).fired["casts added"] == 1
    feeds = {"x": draw(1, 2, HIDDEN), "positions": np.asarray([[91, 2]])}
    after = run(model, {**feeds, "x": feeds["x"].astype(np.float16)})
    np.testing.assert_allclose(after["y"].astype(np.float32), run(angles(), feeds)["y"], rtol=0, atol=2e-2)


FILL = """m (float[n, 4] x, int64[n, 1] at) => (y{more}) {{
    shape = Shape(x)
    zeros = ConstantOfShape(shape)
    {body}
    y = ScatterElements<axis=1>(zeros, at, one_column)
}}"""
COLUMN = "s = ReduceMax(x, axis) \n one_column = Identity(s)"


def test_a_fill_value_is_written_in_half_precision() -> None:
    model = parse(FILL.format(more="", body=COLUMN), {"axis": np.asarray([1])})
    apply(ConvertFloat("fp16"), model)
    assert "Cast" not in operators(model)
    feeds = {"x": draw(3, 4).astype(np.float16), "at": np.asarray([[1], [0], [3]])}
    after = run(model, feeds)["y"]
    assert after.dtype == np.float16
    wanted = np.zeros((3, 4), np.float16)
    np.put_along_axis(wanted, feeds["at"], feeds["x"].max(axis=1, keepdims=True), axis=1)
    np.testing.assert_array_equal(after, wanted)


def test_a_fill_value_that_something_else_reads_is_cast() -> None:
    model = parse(FILL.format(more=", z", body=f"{COLUMN} \n z = Cos(zeros)"), {"axis": np.asarray([1])})
    apply(ConvertFloat("fp16"), model)
    assert operators(model).count("Cast") == 1
    outputs = run(model, {"x": draw(3, 4).astype(np.float16), "at": np.asarray([[1], [0], [3]])})
    assert (outputs["y"].dtype, outputs["z"].dtype) == (np.float16, np.float32)


def test_absent_outputs_get_no_type() -> None:
    """The runtime refuses mean and deviation in half precision, even where they are absent."""
    text = """m (float[b, s, 16] x, float[b, s, 16] r) => (y, z) {
        y, , , z = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=1e-5>(x, r, scale)
    }"""
    model = parse(text, {"scale": draw(16)})
    apply(ConvertFloat("fp16"), model)
    types = [output.dtype for output in node_of(model, "SkipSimplifiedLayerNormalization").outputs]
    assert types == [ir.DataType.FLOAT16, None, None, ir.DataType.FLOAT16]


def test_a_graph_without_floats_is_left_alone() -> None:
    model = parse("m (int64[n] i, float16[n] h) => (y, z) { y = Add(i, one) \n z = Tanh(h) }", {"one": np.asarray(1)})
    assert left_alone(ConvertFloat("fp16"), model) == []
