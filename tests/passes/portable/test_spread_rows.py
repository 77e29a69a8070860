"""Rows that are carried from a lookup to where it meets the batch; slots_graphs.py makes the graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import dims
from llmc.passes.portable.spread_rows import apply_spread, plan_spread

from ..graphs import Array, close, draw, parse, run

WIDTH = 4
PATHS = {
    "one new axis": "u = Unsqueeze(v, ax0)\n y = Add(h, u)",
    "broadcast": "y = Add(h, v)",
    "scaled first": "s = Mul(v, v)\n u = Unsqueeze(s, ax0)\n y = Add(h, u)",
    "two new axes": "u = Unsqueeze(v, ax01)\n y = Add(h4, u)",
    "one after the other": "t = Unsqueeze(v, ax0)\n u = Unsqueeze(t, ax1)\n y = Add(h4, u)",
    "halves that are joined again": "t = Unsqueeze(v, ax01)\n a, b = Split<axis=-1, num_outputs=2>(t)\n"
    " u = Concat<axis=-1>(b, a)\n y = Add(h4, u)",
    "pairs that are reshaped": "t = Unsqueeze(v, ax01)\n p = Unsqueeze(t, last)\n q = Concat<axis=-1>(p, p)\n"
    " r = Reshape(q, wide)\n u = Slice(r, n0, n4, last)\n y = Add(h4, u)",
}
"""From ``v`` [seq, width] to ``y`` with the batch."""
LOST = {
    "a sum over all": ("t = Unsqueeze(v, ax0)\n u = ReduceSum(t, ax0)\n y = Add(h, u)", "ReduceSum"),
    "an axis elsewhere": ("u = Unsqueeze(v, ax1)\n y = Mul(u, u)", "Unsqueeze"),
    "joined with what has no rows": ("t = Unsqueeze(v, ax0)\n u = Concat<axis=-1>(t, one)\n y = Mul(u, u)", "Concat"),
    "joined with other rows": ("t = Unsqueeze(v, ax0)\n u = Concat<axis=0>(t, t)\n y = Mul(u, u)", "Concat"),
    "joined along an axis that is counted from the end": (
        "t = Unsqueeze(v, ax0)\n u = Concat<axis=-3>(t, t)\n y = Mul(u, u)",
        "Concat",
    ),
    "rows that change places": (
        "t = Unsqueeze(v, ax0)\n u = Transpose<perm=[1, 0, 2]>(t)\n y = Mul(u, u)",
        "Transpose",
    ),
    "all axes turned round": ("t = Unsqueeze(v, ax0)\n u = Transpose(t)\n y = Mul(u, u)", "Transpose"),
    "rows and slots as one axis": ("t = Unsqueeze(v, ax0)\n u = Reshape(t, flat)\n y = Mul(u, u)", "Reshape"),
    "a softmax over slots": ("u = Softmax<axis=0>(v)\n y = Add(h, u)", "Softmax"),
    "an operator of another domain": ("u = com.microsoft.Mul(v, v)\n y = Add(h, u)", "Mul"),
}


def make(path: str) -> ir.Model:
    numbers = {"ax0": [0], "ax1": [1], "ax01": [0, 1], "last": [-1], "n0": [0], "n4": [WIDTH]}
    weights: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    weights["wide"] = np.asarray([1, 1, -1, 2 * WIDTH], np.int64)
    weights["flat"] = np.asarray([-1, WIDTH], np.int64)
    weights["one"] = draw(1, 3, WIDTH)
    text = f"m (float[seq, {WIDTH}] v, float[batch, seq, {WIDTH}] h, float[batch, 2, seq, {WIDTH}] h4) => (y)"
    model = parse(f"{text} {{ {path} }}", weights)
    for node in model.graph:
        if node.domain:
            node.outputs[0].shape = ir.Shape(["seq", WIDTH])
    return model


@pytest.mark.parametrize("name", PATHS)
def test_rows_arrive(name: str) -> None:
    """What is made of equal rows is the same as before; of other rows, what each gives alone."""
    model = make(PATHS[name])
    rows = draw(3, 5, WIDTH, seed=4)
    feeds = {"h": draw(3, 5, WIDTH, seed=5), "h4": draw(3, 2, 5, WIDTH, seed=6)}
    alone = [run(model, {**feeds, "v": row})["y"][index] for index, row in enumerate(rows)]
    value = model.graph.inputs[0]
    spread = plan_spread(value)
    assert spread.lost is None
    value.shape = ir.Shape(["batch", "seq", WIDTH])
    apply_spread(model.graph, spread, value.shape[0])
    close(run(model, {**feeds, "v": rows}), {"y": np.stack(alone)}, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("scaled first", {"s": ["batch", "seq", WIDTH]}),
        ("two new axes", {"u": ["batch", 1, "seq", WIDTH]}),
        (
            "pairs that are reshaped",
            {
                "t": ["batch", 1, "seq", WIDTH],
                "p": ["batch", 1, "seq", WIDTH, 1],
                "q": ["batch", 1, "seq", WIDTH, 2],
            },
        ),
    ],
)
def test_shapes_are_stated(name: str, shapes: dict[str, list[str | int]]) -> None:
    model = make(PATHS[name])
    spread = plan_spread(model.graph.inputs[0])
    apply_spread(model.graph, spread, ir.SymbolicDim("batch"))
    stated = {value.name: dims(value) for node in model.graph for value in node.outputs}
    assert {value: stated[value] for value in shapes} == shapes


@pytest.mark.parametrize("name", LOST)
def test_a_node_without_a_place_for_rows_is_named(name: str) -> None:
    path, operator = LOST[name]
    lost = plan_spread(make(path).graph.inputs[0]).lost
    assert lost is not None
    assert lost.op_type == operator
