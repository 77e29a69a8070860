from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph.graph_query import dims, graph_input
from llmc.passes.graph_pass import Tally
from llmc.passes.portable.use_position_ids import UsePositionIds

from ..graphs import Array, apply, close, left_alone, node_of, operators, run, snapshot
from ..slots_graphs import HIDDEN, SAMPLES, feeds, make

BROADCAST = "both = Shape<start=0, end=2>(input_ids) indices = Expand(slots, both)"
LOOKUPS = {
    "one row for all": ("x = Gather(table, slots)", 0),
    "a row with a batch of one": ("indices = Unsqueeze(slots, axis0) x = Gather(table, indices)", 0),
    "equal rows": (f"{BROADCAST} x = Gather(table, indices)", 0),
    "from another row on": ("moved = Add(slots, two) x = Gather(table, moved)", 2),
    "one before": ("high = Sub(total0, one) low = Sub(past, one) r = Range(low, high, one) x = Gather(table, r)", -1),
    "a slice": ("x = Slice(table, past1, total1, axis0)", 0),
    "a slice without axes": ("x = Slice(table, past1, total1)", 0),
    "a slice from another row on": (
        "two1 = Unsqueeze(two, axis0) a = Add(past1, two1) b = Add(total1, two1) x = Slice(table, a, b, axis0)",
        2,
    ),
    "past from the mask": (
        "all1 = Shape<start=1>(attention_mask) p1 = Sub(all1, seq1) x = Slice(table, p1, all1, axis0)",
        0,
    ),
}
NEAR_MISSES = {
    "not from the past on": "ends = Range(zero, seq, one) x = Gather(table, ends)",
    "every other row": "odd = Mul(slots, two) x = Gather(table, odd)",
    "backwards": "last = Sub(total0, one) down = Sub(last, slots) x = Gather(table, down)",
    "of what the mask holds": "m = ReduceSum<keepdims=0>(attention_mask) s = Add(slots, m) x = Gather(table, s)",
    "rows of a batch at places of their own": (
        f"{BROADCAST.replace('indices', 'equal')} all1 = Shape<start=0, end=1>(input_ids) all = Squeeze(all1) "
        "r = Range(zero, all, one) r1 = Unsqueeze(r, axis1) indices = Add(equal, r1) x = Gather(table, indices)"
    ),
    "tokens": "x = Gather(words, input_ids)",
    "positions already": "x = Gather(table, position_ids)",
    "always the same rows": "x = Gather(table, axis0)",
    "always the same slice": "x = Slice(table, axis0, axis1, axis0)",
    "columns": "t = Gather<axis=1>(wide, slots) x = Transpose<perm=[1,0]>(t)",
    "a slice of columns": "t = Slice(wide, past1, total1, axis1) x = Transpose<perm=[1,0]>(t)",
    "every other row of a slice": "d = Mul(seq1, axis2) e = Add(past1, d) x = Slice(table, past1, e, axis0, axis2)",
    "a part of the rows of a slice": "x = Slice(table, past1, total1, axis0, axis2)",
    "a slice of rows and columns": (
        "a = Concat<axis=0>(past1, axis0) b = Concat<axis=0>(total1, axis1) x = Slice(table, a, b)"
    ),
    "no weight": "made = Add(table, table) x = Gather(made, slots)",
    "a table of three axes": "c = Gather(cube, slots) x = Squeeze(c, axis1)",
}


def name_nodes(model: ir.Model) -> ir.Model:
    for number, node in enumerate(model.graph):
        node.name = f"node_{number}"
    return model


def lookup(text: str) -> ir.Model:
    table = np.random.default_rng(5).standard_normal((HIDDEN, 40)).astype(np.float32)
    cube: Array = table.T.reshape(40, 1, HIDDEN).copy()
    return make(f"{text} y = Add(h, x)", {"wide": table, "cube": cube}, f", float[sequence, {HIDDEN}] x")


@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_look_up_their_own_positions(name: str) -> None:
    """Rows without padding as before; padded ones what they would look up alone."""
    text, offset = LOOKUPS[name]
    pasts = [case for case in SAMPLES if case[0] + offset >= 0]
    model = lookup(text)
    before = [run(model, feeds(*case)) for case in pasts]
    tally = apply(UsePositionIds(), model)
    assert tally.fired == {"positions": 1}
    RemoveDeadCode()(model)
    assert set(operators(model)) == ({"Gather", "Add"} if name != "past from the mask" else set(operators(model)))
    for case, expected in zip(pasts, before, strict=True):
        close(run(model, feeds(*case)), expected, rtol=0, atol=0)
    table = model.graph.initializers["table"].const_value
    assert table is not None
    given = feeds(7, 3, padding=(0, 4))
    rows = table.numpy()[given["position_ids"] + offset]
    close(run(model, given), {"y": given["h"] + rows}, rtol=0, atol=0)


def test_shape_and_type_are_stated() -> None:
    model = lookup(LOOKUPS["a slice from another row on"][0])
    apply(UsePositionIds(), model)
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert dims(gather.outputs[0]) == ["batch", "sequence", HIDDEN]
    assert gather.outputs[0].dtype == ir.DataType.FLOAT
    assert gather.inputs[1] is not None
    assert gather.inputs[1].dtype == ir.DataType.INT64


def test_two_tables_share_the_offset() -> None:
    model = make(
        "s = Add(slots, two) a = Gather(table, s) b = Gather(words, s) ab = Add(a, b) y = Add(h, ab)",
        known=f", float[sequence, {HIDDEN}] a, float[sequence, {HIDDEN}] b, float[sequence, {HIDDEN}] ab",
    )
    assert apply(UsePositionIds(), name_nodes(model)).fired == {"positions": 2}
    assert [name for name in model.graph.initializers if "position_offset" in name] == ["position_offset_2"]
    given = feeds(4, 3, padding=(2, 0))
    tables = [model.graph.initializers[name].const_value for name in ("table", "words")]
    at = given["position_ids"] + 2
    close(run(model, given), {"y": given["h"] + sum(t.numpy()[at] for t in tables if t is not None)}, atol=1e-6)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_another_lookup_is_left_alone(name: str) -> None:
    assert left_alone(UsePositionIds(), lookup(NEAR_MISSES[name])) == []


def test_one_row_for_all_may_be_scaled_first() -> None:
    """[sequence, hidden] on the way to the tokens; it is [batch, sequence, hidden] then, also where it is stated."""
    text = "g = Gather(table, slots) x = Mul(g, g)"
    model = make(f"{text} y = Add(h, x)", known="".join(f", float[sequence, {HIDDEN}] {name}" for name in "gx"))
    apply(UsePositionIds(), model)
    assert dims(node_of(model, "Mul").outputs[0]) == ["batch", "sequence", HIDDEN]
    table = model.graph.initializers["table"].const_value
    assert table is not None
    given = feeds(7, 3, padding=(0, 4))
    close(run(model, given), {"y": given["h"] + table.numpy()[given["position_ids"]] ** 2}, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("g = Gather(table, slots) x = Softmax(g)", "Softmax"),
        ("g = Slice(table, past1, total1, axis0) c = Mul(g, g) x = Reshape(c, rows)", "Reshape"),
    ],
)
def test_a_result_that_is_given_an_axis_is_refused(text: str, user: str) -> None:
    """There is no place for rows in [1, sequence, hidden] made of it; left alone, padded batches would be wrong."""
    known = "".join(f", float[sequence, {HIDDEN}] {name}" for name in "gc") + f", float[1, sequence, {HIDDEN}] x"
    model = name_nodes(make(f"{text} y = Add(h, x)", {"rows": np.asarray([1, -1, HIDDEN])}, known))
    lookup_name = next(node.name for node in model.graph if node.outputs[0].name == "g")
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=f"{user} takes what {lookup_name} looks up by positions"):
        UsePositionIds().rewrite(model, Tally())
    assert snapshot(model) == before


def test_without_positions_nothing_can_be_done() -> None:
    model = lookup(LOOKUPS["one row for all"][0])
    positions = graph_input(model, "position_ids")
    assert positions is not None
    model.graph.inputs.remove(positions)
    assert left_alone(UsePositionIds(), model) == []
