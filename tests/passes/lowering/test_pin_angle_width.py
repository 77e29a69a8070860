from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.lowering.pin_angle_width import PinAngleWidth

from ..graphs import apply, close, draw, left_alone, operators, parse, run

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


@pytest.mark.parametrize(
    ("target", "pinned"),
    [([0, 0, 4], 0), ([0, 0, -1], 2), ([2, 3, 4], 2), ([2, -1, 4], 2)],
    ids=["a number", "inferred", "all sizes", "inferred rows"],
)
def test_what_says_its_width_is_not_said_again(target: list[int], pinned: int) -> None:
    """Only a Reshape that keeps the rows and states a number says it."""
    text = f"""{HEADER.format(width=4)} {{ cos0 = Cos(a) cos = Reshape(cos0, target) sin = Identity(cos)
        y = RotaryEmbedding<interleaved=1>(q, cos, cos) z = RotaryEmbedding<interleaved=1>(k, cos, cos) }}"""
    model = parse(text, {"target": np.asarray(target, np.int64)})
    for value in (output for node in model.graph for output in node.outputs if output.name == "cos"):
        value.shape = ir.Shape(["batch", "seq", 4])
    PinAngleWidth()(model)
    assert operators(model).count("Reshape") == (2 if pinned else 1)


def test_tables_of_positions_are_left_alone() -> None:
    """[positions, width], which a rotation looks up by position_ids: their width is known."""
    text = """m (float[batch, 2, seq, 8] q, int64[batch, seq] at, float[n, 4] cos, float[n, 4] sin) => (y) {
        y = RotaryEmbedding<interleaved=1>(q, cos, sin, at) }"""
    assert left_alone(PinAngleWidth(), parse(text)) == []


def test_an_operator_of_another_domain_is_left_alone() -> None:
    model = parse(graph().replace("RotaryEmbedding", "com.microsoft.RotaryEmbedding"), {})
    assert left_alone(PinAngleWidth(), model) == []
