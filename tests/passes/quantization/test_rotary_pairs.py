"""Pairs of channels against ONNX Runtime's own rotation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.quantization.rotary_pairs import RotaryPairs

from ..graphs import Array, draw, open_session, parse

WIDTH, POSITIONS, HEADS = 32, 50, 2


def attention(angles: int, interleaved: int, scale: float = 1.0) -> tuple[ir.Model, Array, Array]:
    table = np.outer(np.arange(POSITIONS), 2.0 ** -np.arange(angles))
    cosines, sines = (scale * f(table).astype(np.float32) for f in (np.cos, np.sin))
    text = f"""m (float[b, s, 64] q, float[b, s, 64] k, float[b, s, 64] v, float[b, 2, p, 32] pk,
        float[b, 2, p, 32] pv, int32[b] ends, int32 total) => (y, float[b, 2, t, 32] "key") {{
        y, "key", w = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2, do_rotary=1,
            rotary_interleaved={interleaved}>(q, k, v, pk, pv, ends, total, cos, sin) }}"""
    return parse(text, {"cos": cosines, "sin": sines}), cosines, sines


def stored(model: ir.Model, keys: Array, position: int) -> Array:
    """A key as the operator stores it at a position, [heads, width]."""
    feeds = {name: np.zeros((1, HEADS, position, WIDTH), np.float32) for name in ("pk", "pv")}
    feeds |= dict.fromkeys("qkv", keys.reshape(1, 1, -1))
    feeds |= {"ends": np.asarray([position], np.int32), "total": np.asarray(position + 1, np.int32)}
    found: Array = open_session(model).run(["key"], feeds)[0]
    return found[0, :, -1]


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize(("angles", "interleaved"), [(16, 0), (16, 1), (8, 0), (8, 1)])
def test_keys_are_turned_as_the_operator_turns_them(angles: int, interleaved: int, scale: float) -> None:
    model, cosines, sines = attention(angles, interleaved, scale)
    pairs = RotaryPairs.of(next(node for node in model.graph if node.op_type == "GroupQueryAttention"), WIDTH)
    keys = draw(HEADS, WIDTH)
    here, there = stored(model, keys, 3), stored(model, keys, 40)
    assert np.abs(here - there).max() > 0.1
    np.testing.assert_allclose(pairs.turn(here, cosines[37], sines[37]), there, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pairs.lengths(here), pairs.lengths(there), rtol=1e-5)
    assert (pairs.lengths(here) >= np.abs(here)).all()


def test_partners() -> None:
    model, *_ = attention(8, 0)
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert RotaryPairs.of(node, WIDTH).partners.tolist() == [*range(8, 16), *range(8), *range(16, 32)]
    without = ir.node("GroupQueryAttention", list(node.inputs[:7]), domain="com.microsoft")
    assert RotaryPairs.of(without, WIDTH).partners.tolist() == [*range(16, 32), *range(16)]
    assert RotaryPairs.of(without, 3).partners.tolist() == [1, 0, 2]
