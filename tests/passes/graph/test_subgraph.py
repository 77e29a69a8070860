from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import SMALL
from llmc.passes.graph.subgraph import BATCH, SAMPLES, call_sizes, cut, evaluate, shape_of, slot_offset
from llmc.passes.graph_pass import NearMiss

from ..graphs import Array, draw, parse, snapshot

INPUTS = """int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
    float[batch, 2, past, 4] past_key, float[batch, 3, "sequence + past + 1", 7] long, float[batch, "past/2"] odd"""
NUMBERS = {"zero": 0, "one": 1, "two": 2, "axis0": [0], "axis1": [1]}


def make(body: str) -> ir.Model:
    weights: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in NUMBERS.items()}
    weights |= {"weight": draw(2 * SMALL + 1), "at_most": np.arange(SMALL)}
    text = INPUTS.replace('"sequence + past + 1"', "long_dim").replace('"past/2"', "odd_dim")
    model = parse(f"m ({text}) => (out) {{ {body} }}", weights)
    for name, dim in (("long", "sequence + past + 1"), ("odd", "past/2")):
        value = next(value for value in model.graph.inputs if value.name == name)
        assert value.shape is not None
        value.shape = ir.Shape([dim if getattr(d, "value", d) == f"{name}_dim" else d for d in value.shape])
    return model


def value_of(body: str, past: int = 5, seq: int = 3) -> Array:
    model = make(body)
    before = snapshot(model)
    result = evaluate(model.graph.outputs[0], past=past, seq=seq)
    assert snapshot(model) == before
    return result


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("out = Shape(input_ids)", [BATCH, 3]),
        ("out = Shape(attention_mask)", [BATCH, 8]),
        ("out = Shape<start=2, end=3>(past_key)", [5]),
        ("out = Shape(long)", [BATCH, 3, 9, 7]),
        ("out = Shape<start=1, end=-1>(long)", [3, 9]),
        ("out = Shape<start=-3, end=2>(long)", [3]),
        ("out = Shape<start=-2>(long)", [9, 7]),
        ("out = Shape<end=-2>(long)", [BATCH, 3]),
        ("out = Shape<start=3, end=9>(long)", [7]),
        ("out = Constant<value_ints=[4, 5]>()", [4, 5]),
        ("out = Add(one, two)", 3),
        ("s = Shape<start=2, end=3>(past_key) p = Squeeze(s) e = Add(p, two) out = Range(p, e, one)", [5, 6]),
        ("s = Size(axis0) out = Add(s, two)", 3),
        ("s = Shape(input_ids) out, rest = Split<axis=0, num_outputs=2>(s)", [BATCH]),
        ("s = Shape(input_ids) rest, out = Split<axis=0, num_outputs=2>(s)", [3]),
        ("s = Shape(input_ids) m = Gather(s, one) out = Clip(m, , two)", 2),
        ("out = ReduceSum<keepdims=0>(at_most)", SMALL * (SMALL - 1) // 2),
    ],
)
def test_what_depends_on_lengths_alone(body: str, expected: Any) -> None:
    result = value_of(body)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_the_batch_is_told_from_one_row_and_from_any_length() -> None:
    assert BATCH > 1
    lengths = {length for past, seq in SAMPLES for length in (past, past + seq)}
    assert BATCH not in lengths
    assert len({(past > 0, seq > 1) for past, seq in SAMPLES}) == 3, "no past, one token, and neither"


def test_each_call_has_its_lengths() -> None:
    body = "s = Shape<start=1, end=2>(attention_mask) t = Squeeze(s) out = Range(zero, t, one)"
    for past, seq in ((0, 4), (3, 1), (0, 0)):
        np.testing.assert_array_equal(value_of(body, past, seq), np.arange(past + seq))


def test_floats_keep_their_type() -> None:
    body = "s = Shape<start=1, end=2>(input_ids) f = Cast<to=1>(s) out = Sqrt(f)"
    result = value_of(body, seq=9)
    assert result.dtype == np.float32
    assert result.tolist() == [3.0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("out = Identity(input_ids)", "it depends on the input input_ids"),
        ("s = Shape(input_ids) m = ReduceMax(attention_mask) out = Add(s, m)", "the input attention_mask"),
        ("s = Shape<start=1>(input_ids) f = Cast<to=1>(s) out = Mul(f, weight)", "it depends on the weight weight"),
        ("out = Shape(odd)", "it depends on the input odd"),
        ("out = llmc.Unknown(one)", "it depends on Unknown"),
        ("s = Shape(input_ids) out = Reshape(one, s)", "it cannot be computed"),
    ],
)
def test_what_depends_on_more_has_a_reason(body: str, reason: str) -> None:
    with pytest.raises(NearMiss, match=reason):
        value_of(body)


def test_inputs_weights_and_nothing() -> None:
    model = make("out = Shape(input_ids)")
    assert evaluate(model.graph.initializers["one"], past=1, seq=1) == 1
    for value, reason in (
        (None, "there is no value"),
        (model.graph.inputs[0], "it depends on the input input_ids"),
        (model.graph.initializers["weight"], "it depends on the weight weight"),
    ):
        with pytest.raises(NearMiss, match=reason):
            evaluate(value, past=1, seq=1)


@pytest.mark.parametrize("shape", [None, ir.Shape([2, None])])
def test_a_shape_must_be_known(shape: ir.Shape | None) -> None:
    model = make("out = Shape(input_ids)")
    model.graph.inputs[0].shape = shape
    with pytest.raises(NearMiss, match="it depends on the input input_ids"):
        evaluate(model.graph.outputs[0], past=1, seq=1)


def shape(dimensions: Sequence[str | int | None] | None, **limits: int) -> ir.Node:
    value = ir.val("x", ir.DataType.FLOAT, None if dimensions is None else ir.Shape(dimensions))
    return ir.node("Shape", [value], limits)


@pytest.mark.parametrize(
    ("dimensions", "limits", "expected"),
    [
        (["batch", "sequence", 24], {}, [2, 3, 24]),
        (["batch", "past + sequence"], {"start": 1}, [8]),
        (["batch", "total - sequence", 4], {"start": 1, "end": 2}, [5]),
        (["batch", "sequence - total", 4], {"start": 1, "end": 2}, [-5]),
        (["2*past + 1", "batch"], {"end": 1}, [11]),
        (["batch*sequence", "total", 7], {"start": 0, "end": 2}, [6, 8]),
        (["batch", "past", 16], {"start": -2, "end": -1}, [5]),
    ],
)
def test_shapes_follow_from_the_names_of_dimensions(
    dimensions: list[str | int], limits: dict[str, int], expected: list[int]
) -> None:
    assert shape_of(shape(dimensions, **limits), call_sizes(2, 5, 3)) == expected


@pytest.mark.parametrize("dimensions", [["batch", "tokens"], ["batch", None], ["past / 2", 1], ["a b", 1], None])
def test_other_dimensions_are_not_known(dimensions: list[str | int | None] | None) -> None:
    assert shape_of(shape(dimensions), call_sizes(2, 5, 3)) is None


def test_what_a_shape_does_not_give_need_not_be_known() -> None:
    assert shape_of(shape(["batch", "tokens"], end=1), call_sizes(2, 5, 3)) == [2]
    assert shape_of(ir.node("Size", [ir.val("x", ir.DataType.FLOAT, ["batch"])]), call_sizes(2, 5, 3)) is None


@pytest.mark.parametrize(
    ("body", "offset"),
    [
        ("out = Range(p, t, one)", 0),
        ("r = Range(p, t, one) out = Add(r, two)", 2),
        ("r = Range(p, t, one) out = Mul(r, two)", None),
        ("out = Range(zero, q, one)", None),
        ("out = Range(zero, t, one)", None),
        ("h = Cast<to=1>(p) e = Cast<to=1>(t) f = Cast<to=1>(one) g = Div(f, f) out = Range(h, e, g)", 0),
        ("i = Range(p, t, one) r = Cast<to=1>(i) f = Cast<to=1>(two) g = Reciprocal(f) out = Add(r, g)", None),
        ("out = Cast<to=7>(input_ids)", None),
    ],
)
def test_numbers_by_token_are_slots_up_to_a_constant(body: str, offset: int | None) -> None:
    lengths = "a = Shape<start=2, end=3>(past_key) p = Squeeze(a) b = Shape<start=1, end=2>(input_ids) q = Squeeze(b)"
    model = make(f"{lengths} t = Add(p, q) {body}")
    assert slot_offset([model.graph.outputs[0]], lambda results: results[0]) == offset


def test_a_part_is_cut_at_inputs_and_constants() -> None:
    """What a known Shape asks is no part of it; a larger constant and another input are none either."""
    model = make("s = Shape(input_ids) m = ReduceMax(attention_mask) n = Add(s, m) out = Add(n, two)")
    total = next(node.outputs[0] for node in model.graph if node.op_type == "ReduceMax")
    part = cut(model.graph.outputs, {total})
    assert [node.op_type for node in part.nodes] == ["Shape", "Add", "Add"]
    assert [node.op_type for node in part.lengths] == ["Shape"]
    assert [value.name for value in part.constants] == ["two"]
    cut(model.graph.outputs, {total}, largest=8)
    with pytest.raises(NearMiss, match="it depends on the weight two"):
        cut(model.graph.outputs, {total}, largest=7)
    with pytest.raises(NearMiss, match="it depends on the input attention_mask"):
        cut(model.graph.outputs)
    with pytest.raises(NearMiss, match="its angles depend on the input input_ids"):
        cut(model.graph.outputs, {total}, by_length=False, subject="its angles depend")
