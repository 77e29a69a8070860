from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph.graph_query import dims, graph_input
from llmc.passes.portable.positions_by_row import PositionsByRow

from ..graphs import Array, apply, close, left_alone, operators, run
from ..slots_graphs import HIDDEN, SAMPLES, feeds, make

TEMPERATURE = """real = Cast<to=1>(slots) plus = Add(real, one_float) part = Div(plus, four) whole = Floor(part)
    more = Add(whole, one_float) log = Log(more) tenth = Mul(log, small) scale = Add(tenth, one_float)"""
"""A temperature that grows with the text, as of long-context models."""
AXES = np.asarray([0, 2], np.int64)


def temperature(positions: Array) -> npt.NDArray[np.float32]:
    scale = 1 + 0.1 * np.log(1 + np.floor((positions.astype(np.float32) + 1) / 4))
    return scale[..., None].astype(np.float32)


def spread(text: str, end: str = "x = Unsqueeze(scale, axes)", more: str = "") -> ir.Model:
    """A graph that multiplies ``h`` [batch, sequence, hidden] by one number per token."""
    numbers = {"one_float": 1.0, "four": 4.0, "small": 0.1, "half": 0.5}
    weights: dict[str, Array] = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    weights |= {"axes": AXES, "target": np.asarray([1, -1, 1], np.int64), "vector": np.arange(1, 5, dtype=np.float32)}
    known = f", float[sequence] scale, float[1, sequence, 1] x, float[sequence] real{more}"
    return make(f"{text} {end} y = Mul(h, x)", weights, known)


CASES = {
    "Unsqueeze": (TEMPERATURE, "x = Unsqueeze(scale, axes)"),
    "Reshape": (TEMPERATURE, "x = Reshape(scale, target)"),
    "counted from 1": (
        "first = Add(slots, one) real = Cast<to=1>(first) part = Div(real, four) whole = Floor(part) "
        "more = Add(whole, one_float) log = Log(more) tenth = Mul(log, small) scale = Add(one_float, tenth)",
        "x = Unsqueeze(scale, axes)",
    ),
    "by way of twice the number": (
        "even = Mul(slots, two) real2 = Cast<to=1>(even) real = Mul(half, real2) plus = Add(real, one_float) "
        "part = Div(plus, four) whole = Floor(part) more = Add(whole, one_float) log = Log(more) "
        "tenth = Mul(log, small) scale = Add(one_float, tenth)",
        "x = Unsqueeze(scale, axes)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_row_has_its_own_positions(name: str) -> None:
    """Rows without padding as before; padded ones as they would be alone."""
    model = spread(*CASES[name])
    before = [run(model, feeds(*case)) for case in SAMPLES]
    tally = apply(PositionsByRow(), model)
    assert tally.fired == {"positions": 1}
    RemoveDeadCode()(model)
    assert not {"Range", "Unsqueeze", "Shape"} & set(operators(model))
    for case, expected in zip(SAMPLES, before, strict=True):
        close(run(model, feeds(*case)), expected, rtol=1e-6, atol=0)
    given = feeds(7, 9, padding=(0, 6))
    assert (temperature(given["position_ids"][0]) != temperature(given["position_ids"][1])).any()
    close(run(model, given), {"y": given["h"] * temperature(given["position_ids"])}, rtol=1e-6, atol=0)


def test_heads_keep_their_axis() -> None:
    """[1, 1, sequence, 1] becomes [batch, 1, sequence, 1], for queries [batch, heads, sequence, dim]."""
    heads = "h4 = Unsqueeze(h, axis1) m = Mul(h4, wide) y = Squeeze(m, axis1)"
    text = f"{TEMPERATURE} wide = Unsqueeze(scale, axes4) {heads}"
    weights: dict[str, Array] = {"axes4": np.asarray([0, 1, 3], np.int64)}
    weights |= {n: np.asarray(v, np.float32) for n, v in {"one_float": 1.0, "four": 4.0, "small": 0.1}.items()}
    model = make(text, weights, ", float[sequence] scale, float[1, 1, sequence, 1] wide")
    apply(PositionsByRow(), model)
    product = next(node for node in model.graph if node.outputs[0].name == "m")
    assert dims(product.inputs[1]) == ["batch", 1, "sequence", 1]
    given = feeds(3, 6, padding=(5, 0))
    close(run(model, given), {"y": given["h"] * temperature(given["position_ids"])}, rtol=1e-6, atol=0)


def test_names_are_made_from_the_node() -> None:
    model = spread(*CASES["Reshape"])
    node = next(node for node in model.graph if node.op_type == "Reshape")
    node.name = "layer/Reshape"
    apply(PositionsByRow(), model)
    made = [node.name for node in model.graph if (node.name or "").startswith("layer/Reshape/by_row.")]
    assert made == [f"layer/Reshape/by_row.{number}" for number in range(len(made))]
    assert len(made) > 5


NEAR_MISSES = {
    "not from the past on": "ends = Range(zero, seq, one) real = Cast<to=1>(ends) scale = Sqrt(real)",
    "backwards": "last = Sub(total0, one) down = Sub(last, slots) real = Cast<to=1>(down) scale = Sqrt(real)",
    "between two slots": "f = Cast<to=1>(slots) real = Identity(f) scale0 = Identity(f) scale = Mul(real, scale0)",
    "of what the mask holds": (
        "m = ReduceSum<keepdims=0>(attention_mask) s = Add(slots, m) real = Cast<to=1>(s) scale = Sqrt(real)"
    ),
    "beside a vector": "real = Cast<to=1>(slots) a = Shape<start=1, end=2>(input_ids) v = Expand(one_float, a) "
    "sum = CumSum(v, zero) scale = Mul(real, sum)",
    "no element-wise operator": "real = Cast<to=1>(slots) scale = CumSum(real, zero)",
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_another_number_per_token_is_left_alone(name: str) -> None:
    assert left_alone(PositionsByRow(), spread(NEAR_MISSES[name])) == []


@pytest.mark.parametrize("low", ["low = Less(rows, two)", "behind = Sub(rows, total0) low = Less(behind, two)"])
def test_a_mask_of_slots_is_left_alone(low: str) -> None:
    """It compares slots with slots, in integers: all rows have the same."""
    model = make(
        f"rows = Unsqueeze(slots, axes) {low} real = Cast<to=1>(low) y = Mul(h, real)",
        {"axes": AXES},
        ", int64[1, sequence, 1] rows",
    )
    assert left_alone(PositionsByRow(), model) == []


@pytest.mark.parametrize("end", ["y = Add(h, p)", "m = Mul(h, x) y = Add(m, p)"])
def test_what_a_product_takes_is_left_alone(end: str) -> None:
    """A matrix product of [1, sequence, 1] is no spreading over rows, even beside arithmetic that is."""
    model = make(
        f"real = Cast<to=1>(slots) x = Unsqueeze(real, axes) p = MatMul(x, line) {end}",
        {"axes": AXES, "line": np.ones((1, HIDDEN), np.float32)},
        ", float[sequence] real, float[1, sequence, 1] x",
    )
    assert left_alone(PositionsByRow(), model) == []


def test_without_positions_nothing_can_be_done() -> None:
    model = spread(*CASES["Unsqueeze"])
    positions = graph_input(model, "position_ids")
    assert positions is not None
    model.graph.inputs.remove(positions)
    assert left_alone(PositionsByRow(), model) == []


def test_what_is_computed_further_has_rows_too() -> None:
    """The model goes on with [1, sequence, 1]; that is [batch, sequence, 1] then, also where shapes are stated."""
    model = spread(
        f"{TEMPERATURE} z = Unsqueeze(scale, axes)",
        "w = Mul(z, half) x = Mul(w, four)",
        ", float[1, sequence, 1] z, float[1, sequence, 1] w",
    )
    apply(PositionsByRow(), model)
    given = feeds(7, 3, padding=(0, 6))
    close(run(model, given), {"y": given["h"] * temperature(given["position_ids"]) * 2}, rtol=1e-6, atol=0)
    stated = {value.name: dims(value) for node in model.graph for value in node.outputs}
    assert stated["w"] == stated["x"] == ["batch", "sequence", 1]
