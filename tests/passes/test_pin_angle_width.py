from __future__ import annotations

import numpy as np
import pytest

from llmc.passes.pin_angle_width import PinAngleWidth

from .graphs import apply, close, draw, left_alone, operators, parse, run

HEADER = "m (float[batch, 2, seq, 8] q, float[batch, 2, seq, 8] k, float[batch, seq, {width}] a) => (y, z)"
BODY = """
    cos = Cos(a) sin = Sin(a)
    y = RotaryEmbedding<interleaved={interleaved}>(q, cos, sin)
    z = RotaryEmbedding<interleaved={interleaved}>(k, cos, sin)"""
FEEDS = {"q": draw(2, 2, 3, 8), "k": draw(2, 2, 3, 8, seed=1), "a": draw(2, 3, 4, seed=2)}


def graph(interleaved: int = 1, width: int | str = 4) -> str:
    return f"{HEADER.format(width=width)} {{ {BODY.format(interleaved=interleaved)} }}"


def test_rotations_share_the_angles() -> None:
    model = parse(graph(), {})
    before = run(model, FEEDS)
    assert apply(PinAngleWidth(), model).fired == {"angles": 4}
    assert sorted(operators(model)) == ["Cos", "Reshape", "Reshape", "RotaryEmbedding", "RotaryEmbedding", "Sin"]
    for node in model.graph:
        if node.op_type == "Reshape":
            target = node.inputs[1]
            assert target is not None
            assert target.const_value is not None
            np.testing.assert_array_equal(target.const_value.numpy(), [0, 0, 4])
    close(run(model, FEEDS), before)
    assert left_alone(PinAngleWidth(), model) == []


@pytest.mark.parametrize("text", [graph(interleaved=0), graph(width="half")], ids=["not interleaved", "no number"])
def test_others_are_left_alone(text: str) -> None:
    assert left_alone(PinAngleWidth(), parse(text, {})) == []
