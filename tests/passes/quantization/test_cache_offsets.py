"""Attention whose keys and values lie about a centre makes what it made, and caches as much less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.quantization.cache_offsets import Movable, move
from llmc.passes.quantization.sites import find_sites

from ..graphs import Array, close, draw, open_session, operators, parse, require_order, run

HEADS, KV_HEADS, DIM, POSITIONS = 4, 2, 16, 40
CENTRES: list[list[float]] = (5 * draw(2, KV_HEADS * DIM, seed=11)).tolist()
GIVEN = {
    "packed": ("float[batch, seq, 128] qkv", "qkv, , "),
    "apart": ("float[batch, seq, 64] q, float[batch, seq, 32] k, float[batch, seq, 32] v", "q, k, v"),
}


def make(
    form: str = "packed",
    *,
    angles: int = 8,
    interleaved: int = 0,
    length: float = 1.0,
    more: str = "",
    also: str = "",
) -> ir.Model:
    """One attention that rotates, unless it has no angles; what it makes is read by a node and is an output, too."""
    inputs, given = GIVEN[form]
    tables = "cos, sin" if angles else ", "
    text = f"""m ({inputs}, int32[batch] seqlens_k, int32 total, float[batch, 2, past, 16] "past_key_values.0.key",
        float[batch, 2, past, 16] "past_key_values.0.value") => (y, z, "present.0.key", "present.0.value")
        <float[batch, seq, 64] y, float[batch, 2, t, 16] "present.0.key", float[batch, 2, t, 16] "present.0.value"> {{
        y, "present.0.key", "present.0.value" = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2,
            do_rotary={int(angles > 0)}, rotary_interleaved={interleaved}{more}>({given}, "past_key_values.0.key",
            "past_key_values.0.value", seqlens_k, total, {tables}{also})
        z = Relu(y) }}"""
    weights: dict[str, Array] = {"sink": draw(HEADS, seed=3), "norm": draw(DIM, seed=4)}
    if angles:
        table = np.outer(np.arange(POSITIONS), 2.0 ** -np.arange(angles)).astype(np.float32)
        weights |= {"cos": length * np.cos(table), "sin": length * np.sin(table)}
    model = parse(text, {name: array.astype(np.float32) for name, array in weights.items()})
    for name in ("sink", "norm"):
        if not list(model.graph.initializers[name].uses()):
            del model.graph.initializers[name]
    attention(model).name = "layer/attention"
    return model


def attention(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "GroupQueryAttention")


def generate(model: ir.Model, lengths: Sequence[Sequence[int]]) -> list[Array]:
    """Outputs of each chunk's valid tokens, and the caches at last; each row of a chunk has a length."""
    session, rows = open_session(model), len(lengths[0])
    past = [np.zeros((rows, KV_HEADS, 0, DIM), np.float32)] * 2
    done, made = np.zeros(rows, np.int64), list[Array]()
    for number, chunk in enumerate(lengths):
        width = max(chunk)
        tokens = draw(rows, width, 128, seed=number)
        done += chunk
        feeds: dict[str, Any] = {"qkv": tokens, "q": tokens[..., :64], "k": tokens[..., 64:96], "v": tokens[..., 96:]}
        feeds |= {"seqlens_k": (done - 1).astype(np.int32), "total": np.asarray(done.max(), np.int32)}
        feeds |= dict(zip(("past_key_values.0.key", "past_key_values.0.value"), past, strict=True))
        known = {value.name for value in session.get_inputs()}
        y, z, *past = session.run(None, {name: array for name, array in feeds.items() if name in known})
        np.testing.assert_array_equal(z, np.maximum(y, 0))
        made += [y[row, :length] for row, length in enumerate(chunk)]
    return [*made, *(part[row, :, : done[row]] for part in past for row in range(rows))]


@pytest.mark.parametrize(
    "form",
    [{}, {"form": "apart"}, {"interleaved": 1}, {"length": 1.4}, {"angles": 0}, {"more": ", local_window_size=4"}],
)
@pytest.mark.parametrize("lengths", [[[9], [1], [1], [5]], [[7, 4], [1, 1]]])
@pytest.mark.parametrize("which", ["keys", "values", "both"])
def test_it_makes_what_it_made(form: dict[str, Any], lengths: list[list[int]], which: str) -> None:
    """Whole prompts of several lengths, chunks and single tokens."""
    model, moved = make(**form), make(**form)
    keys, values = (
        part if which in {name, "both"} else [] for name, part in zip(("keys", "values"), CENTRES, strict=True)
    )
    assert Movable.of(attention(moved)) == Movable(keys=True, values=True)
    move(attention(moved), keys, values)
    require_order(moved)
    exact, found = generate(model, lengths), generate(moved, lengths)
    count = len(lengths[0])
    for before, after in zip(exact[: -2 * count], found[: -2 * count], strict=True):
        np.testing.assert_allclose(after, before, atol=2e-4)
    for kind, centres in ((0, keys), (1, values)):
        whole = np.asarray(centres or np.zeros(32)).reshape(KV_HEADS, 1, DIM)
        for row in range(count):
            place = -2 * count + kind * count + row
            np.testing.assert_allclose(found[place], exact[place] - whole, atol=1e-4)


def test_what_it_takes() -> None:
    """Two nodes before each attention and one behind it; positions and rows of tables are made once."""
    model = make()
    move(attention(model), *CENTRES)
    once = ["Shape", "Squeeze", "Sub", "Range", "Cast", "Unsqueeze", "Add", "Range", "Max", *["Gather"] * 3, "Concat"]
    assert operators(model) == [*once, "MatMul", "Add", "com.microsoft::GroupQueryAttention", "Add", "Relu"]
    model = make(angles=0)
    move(attention(model), *CENTRES)
    assert operators(model) == ["Add", "com.microsoft::GroupQueryAttention", "Add", "Relu"]


def with_product(*, bias: bool = False, twice: bool = False) -> ir.Model:
    """Attention, its output projection, and the norm that adds the residual."""
    text = f"""m (float[batch, seq, 128] qkv, int32[batch] seqlens_k, int32 total, float[batch, seq, 48] x,
        float[batch, 2, past, 16] "past_key_values.0.key", float[batch, 2, past, 16] "past_key_values.0.value")
        => (z, s{", y" if twice else ""}) <float[batch, seq, 64] y, float[batch, seq, 48] o> {{
        y, k, v = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>(qkv, , ,
            "past_key_values.0.key", "past_key_values.0.value", seqlens_k, total, cos, sin)
        o = MatMul(y, "o_proj.weight")
        z, , , s = com.microsoft.SkipSimplifiedLayerNormalization(o, x, gamma{", bias" if bias else ""}) }}"""
    table = np.outer(np.arange(POSITIONS), 2.0 ** -np.arange(8)).astype(np.float32)
    weights: dict[str, Array] = {"cos": np.cos(table), "sin": np.sin(table), "gamma": draw(48, seed=8)}
    weights |= {"o_proj.weight": draw(64, 48, seed=9)} | ({"bias": draw(48, seed=10)} if bias else {})
    model = parse(text, weights)
    attention(model).name = "layer/attention"
    return model


@pytest.mark.parametrize("form", [{}, {"bias": True}, {"twice": True}])
def test_the_norm_adds_what_the_projection_makes_of_the_centre(form: dict[str, bool]) -> None:
    """Where it has no bias of its own, and nobody else reads what attention makes."""
    feeds: dict[str, Any] = {"qkv": draw(2, 9, 128), "x": draw(2, 9, 48, seed=2), "total": np.asarray(9, np.int32)}
    feeds |= {"seqlens_k": np.full(2, 8, np.int32)}
    feeds |= {f"past_key_values.0.{kind}": np.zeros((2, KV_HEADS, 0, DIM), np.float32) for kind in ("key", "value")}
    exact, moved = with_product(**form), with_product(**form)
    move(attention(moved), *CENTRES)
    require_order(moved)
    close(run(moved, feeds), run(exact, feeds), atol=2e-3, rtol=1e-4)
    behind = operators(moved)[operators(moved).index("com.microsoft::GroupQueryAttention") + 1 :]
    assert behind == [*(["Add"] if form else []), "MatMul", "com.microsoft::SkipSimplifiedLayerNormalization"]


def test_what_it_brings_is_no_site_of_weights() -> None:
    model = with_product()
    before = [(site.kind, site.name) for site in find_sites(model)]
    move(attention(model), *CENTRES)
    assert [(site.kind, site.name) for site in find_sites(model)] == before == [("head", "o_proj")]


def test_two_layers_share_positions_and_rows() -> None:
    model = make()
    first = attention(model)
    inputs, attributes = list(first.inputs), first.attributes.values()
    second = ir.Node(first.domain, first.op_type, inputs, attributes, num_outputs=3, name="second")
    for value, like in zip(second.outputs, first.outputs, strict=True):
        value.type, value.shape = like.type, like.shape
    model.graph.insert_after(first, second)
    for node in (first, second):
        move(node, *CENTRES)
    require_order(model)
    counts = {name: operators(model).count(name) for name in ("Max", "Gather", "Concat", "MatMul", "Add")}
    assert counts == {"Max": 1, "Gather": 3, "Concat": 1, "MatMul": 2, "Add": 5}


@pytest.mark.parametrize(
    ("form", "keys", "values"),
    [
        ({"also": ", , , sink"}, False, False),
        ({"more": ", smooth_softmax=1"}, False, False),
        ({"more": ", softcap=3.0"}, False, True),
        ({"also": ", , , , , , norm, norm"}, False, True),
        ({"also": ", , , , , , , , seqlens_k"}, False, True),
    ],
)
def test_what_cannot_be_moved(form: dict[str, Any], keys: bool, values: bool) -> None:
    assert Movable.of(attention(make(**form))) == Movable(keys=keys, values=values)


def test_a_soft_cap_sees_a_centre_of_keys_and_none_of_values() -> None:
    """So the rule is no mere caution."""
    form, lengths = {"more": ", softcap=3.0"}, [[9], [1]]
    exact, keys, values = make(**form), make(**form), make(**form)
    move(attention(keys), CENTRES[0], ())
    move(attention(values), (), CENTRES[1])
    wanted = generate(exact, lengths)[1]
    assert np.abs(generate(keys, lengths)[1] - wanted).max() > 0.05
    np.testing.assert_allclose(generate(values, lengths)[1], wanted, atol=1e-4)


def test_tables_that_are_computed_are_an_obstacle() -> None:
    model = make()
    node = attention(model)
    inner = ir.node("Identity", [node.inputs[7]], name="copy")
    model.graph.insert_before(node, inner)
    node.replace_input_with(7, inner.outputs[0])
    assert Movable.of(node) == Movable(keys=False, values=True)
