from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.passes.fusion.fuse_silu import FuseSilu

from ..graphs import apply, close, draw, left_alone, node_of, operators, parse, run

TEXT = "main_graph (float[n, 8] x, float[n, 8] z) => (float[n, 8] y) {{ s = Sigmoid(x) \n y = Mul({}) }}"


@pytest.mark.parametrize("order", ["x, s", "s, x"])
def test_it_matches(order: str) -> None:
    model = parse(TEXT.format(order))
    node_of(model, "Mul").name = "layers.0.mlp/Mul"
    tally = apply(FuseSilu(), model)
    assert tally.fired == tally.expected == {"silu": 1}
    assert operators(model) == ["com.microsoft::QuickGelu"]
    assert node_of(model, "QuickGelu").name == "layers.0.mlp/Mul"
    assert node_of(model, "QuickGelu").attributes.get_float("alpha") == 1.0
    assert model.graph.opset_imports["com.microsoft"] == 1


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 9), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_numbers_agree(rows: int, scale: float) -> None:
    model = parse(TEXT.format("x, s"))
    feeds = {"x": draw(rows, 8, scale=scale), "z": draw(rows, 8)}
    before = run(model, feeds)
    apply(FuseSilu(), model)
    close(run(model, feeds), before)
    assert np.abs(before["y"] - feeds["x"]).max() > 1e-2


def test_another_factor_is_no_silu() -> None:
    assert left_alone(FuseSilu(), parse(TEXT.format("z, s"))) == []
    assert left_alone(FuseSilu(), parse(TEXT.format("x, s").replace("Mul", "llmc.Mul"))) == []


def test_a_sigmoid_that_is_used_elsewhere_stays() -> None:
    model = parse("main_graph (float[n, 8] x) => (float[n, 8] y, float[n, 8] s) { s = Sigmoid(x) \n y = Mul(x, s) }")
    assert left_alone(FuseSilu(), model) == ["its sigmoid is used elsewhere, too"]
