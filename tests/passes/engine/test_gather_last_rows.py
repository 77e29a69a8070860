from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.contract import LAST_ROWS
from llmc.passes.engine.gather_last_rows import GatherLastRows

from ..graphs import apply, left_alone, parse, run

TEXT = """m (float[batch, seq, 4] h, int64[batch] last) => (float[batch, 1, 4] y) {{
    index = Unsqueeze(last, {axes})
    cut = GatherND<batch_dims = 1>(h, index)
    y = Mul(cut, two)
}}"""
WEIGHTS = {"axes_1_2": np.array([1, 2], np.int64), "two": np.asarray(2, np.float32)}


def make() -> ir.Model:
    return parse(TEXT.format(axes="axes_1_2"), WEIGHTS)


@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (3, 1), (3, 5)])
def test_rows_are_those_of_the_positions(batch: int, seq: int) -> None:
    model = make()
    random = np.random.default_rng(0)
    hidden = random.standard_normal((batch, seq, 4)).astype(np.float32)
    last = random.integers(0, seq, batch)
    expected = run(model, {"h": hidden, "last": last})["y"]
    tally = apply(GatherLastRows(), model)
    assert tally.fired == {"last_rows": 1}
    assert "GatherND" not in {node.op_type for node in model.graph}
    rows = np.arange(batch) * seq + last
    actual = run(model, {"h": hidden, "last": last, LAST_ROWS: rows})["y"]
    np.testing.assert_array_equal(actual, expected)


def test_the_input_is_one_number_per_row() -> None:
    model = make()
    apply(GatherLastRows(), model)
    rows = next(value for value in model.graph.inputs if value.name == LAST_ROWS)
    assert rows.dtype == ir.DataType.INT64
    assert str(rows.shape) == "[batch]"


def test_a_second_run_changes_nothing() -> None:
    model = make()
    apply(GatherLastRows(), model)
    assert left_alone(GatherLastRows(), model) == []


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        (
            {"float[batch, seq, 4] h": "float[batch, seq, w] h", "float[batch, 1, 4] y": "float[batch, 1, w] y"},
            "known width",
        ),
        ({"Unsqueeze(last, axes_1_2)": "Reshape(last, shape)"}, "one position per row"),
    ],
)
def test_near_misses_are_left_alone(replaced: dict[str, str], reason: str) -> None:
    text = TEXT.format(axes="axes_1_2")
    for old, new in replaced.items():
        text = text.replace(old, new)
    model = parse(text, {**WEIGHTS, "shape": np.array([-1, 1, 1], np.int64)})
    (given,) = left_alone(GatherLastRows(), model)
    assert reason in given


def test_look_ups_share_the_input() -> None:
    text = TEXT.format(axes="axes_1_2").replace("y = Mul(cut, two)", "again = GatherND<batch_dims = 1>(h, index)\n"
        "    y = Mul(cut, again)")  # fmt: skip
    model = parse(text, WEIGHTS)
    for number, node in enumerate(model.graph):
        node.name = f"{number}/{node.op_type}"
    assert apply(GatherLastRows(), model).fired == {"last_rows": 2}
    assert [value.name for value in model.graph.inputs] == ["h", "last", LAST_ROWS]
    hidden = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    actual = run(model, {"h": hidden, "last": np.asarray([2, 0]), LAST_ROWS: np.asarray([2, 3])})["y"]
    np.testing.assert_array_equal(actual, hidden[[0, 1], [2, 0]][:, None] ** 2)


def test_several_positions_per_row_are_left_alone() -> None:
    text = TEXT.replace("int64[batch] last", "int64[batch, k] last").replace("[batch, 1, 4] y", "[batch, k, 4] y")
    model = parse(text.format(axes="axis"), {"axis": np.array([2], np.int64), "two": WEIGHTS["two"]})
    assert left_alone(GatherLastRows(), model) == ["it does not look up one position per row"]


def test_another_look_up_is_no_site() -> None:
    model = parse(
        "m (float[batch, 4] h, int64[n, 1] at) => (y) { y = GatherND(h, at) }",
    )
    assert left_alone(GatherLastRows(), model) == []
