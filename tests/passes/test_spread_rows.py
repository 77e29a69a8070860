"""Rows that are carried from a lookup to where it meets the batch; slots_graphs.py makes the graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.spread_rows import apply_spread, plan_spread

from .graphs import Array, close, draw, parse, run

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
}


def make(path: str) -> ir.Model:
    numbers = {"ax0": [0], "ax1": [1], "ax01": [0, 1], "last": [-1], "n0": [0], "n4": [WIDTH]}
    weights: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    weights["wide"] = np.asarray([1, 1, -1, 2 * WIDTH], np.int64)
    weights["one"] = draw(1, 3, WIDTH)
    text = f"m (float[seq, {WIDTH}] v, float[batch, seq, {WIDTH}] h, float[batch, 2, seq, {WIDTH}] h4) => (y)"
    return parse(f"{text} {{ {path} }}", weights)


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


@pytest.mark.parametrize("name", LOST)
def test_a_node_without_a_place_for_rows_is_named(name: str) -> None:
    path, operator = LOST[name]
    lost = plan_spread(make(path).graph.inputs[0]).lost
    assert lost is not None
    assert lost.op_type == operator
