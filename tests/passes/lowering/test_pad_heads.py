"""Heads of any width become heads that ONNX Runtime's attention takes, and say what they said."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION, refused_head
from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.pad_heads import PadHeads

from ..graphs import Array, apply, close, draw, draw_all, left_alone, node_of, operators, parse, run

HEADS, KV_HEADS = 4, 2
PLAIN, ROTATED, NORMED = "", ", cos, sin, position_ids", ", , , , q_norm, k_norm"
BOTH = ", cos, sin, position_ids, q_norm, k_norm"
WIDTHS = (8, 12, 20, 80, 96, 100, 112, 120, 160, 256)
"""Those of models that there are, and some that fit no kernel."""


def make(width: int, more: str = PLAIN, options: str = "", *, packed: bool = False, layers: int = 1) -> ir.Model:
    """Attention of heads ``width`` wide; of two layers the second reads the first one's cache."""
    queries = f"float[batch, sequence, {HEADS * width}] q, float[batch, sequence, {KV_HEADS * width}] k, "
    queries += f"float[batch, sequence, {KV_HEADS * width}] v"
    if packed:
        queries = f"float[batch, sequence, {(HEADS + 2 * KV_HEADS) * width}] q"
    past = ", ".join(
        f'float[batch, {KV_HEADS}, past, {width}] "past_key_values.0.{name}"' for name in ("key", "value")
    )
    named = '"past_key_values.0.key", "past_key_values.0.value"'
    attributes = f"num_heads={HEADS}, kv_num_heads={KV_HEADS}, scale=0.2{options}"
    calls = " ".join(
        f'y{i}, "present.{i}.key", "present.{i}.value" = llmc.CachedAttention<{attributes}>'
        f"(q, {',' if packed else 'k, v'}, {named}, attention_mask{more})"
        for i in range(layers)
    )
    presents = ", ".join(f'"present.{i}.key", "present.{i}.value"' for i in range(layers))
    total = "z = Add(y0, y1)" if layers > 1 else "z = MatMul(y0, w_o)"
    text = f"""m (int64[batch, sequence] input_ids, {queries}, int64[batch, total] attention_mask,
        int64[batch, sequence] position_ids, {past}) => (z, {presents}) {{ {calls} {total} }}"""
    angles = np.outer(np.arange(32), 10.0 ** -np.linspace(0, 1, width // 2)).astype(np.float32)
    weights: dict[str, Array] = {"cos": np.cos(angles), "sin": np.sin(angles)}
    weights |= {"w_o": draw(HEADS * width, 5, seed=9, scale=0.1)}
    weights |= {"q_norm": 1 + draw(width, seed=7, scale=0.2), "k_norm": 1 + draw(width, seed=8, scale=0.2)}
    model = parse(text, weights)
    for node in cached_attention.SIGNATURE.calls(model.graph):
        shapes = (["batch", "sequence", HEADS * width], *(["batch", KV_HEADS, "total", width],) * 2)
        for output, shape in zip(node.outputs, shapes, strict=True):
            output.shape, output.dtype = ir.Shape(shape), ir.DataType.FLOAT
    return model


def feeds(model: ir.Model, seq: int) -> dict[str, Array]:
    """Two rows of an empty cache, of one length."""
    sizes: dict[Any, Any] = {"batch": 2, "past": 0, "sequence": seq}
    floats: dict[str, Any] = {
        value.name or "": [sizes.get(dim, dim) for dim in dims(value) or ()]
        for value in model.graph.inputs
        if value.name not in {"input_ids", "attention_mask", "position_ids"}
    }
    made: dict[str, Array] = dict(draw_all(floats, seed=20))
    positions = np.broadcast_to(np.arange(seq), (2, seq)).copy()
    whole = {"input_ids": np.zeros((2, seq), np.int64), "attention_mask": np.ones((2, seq), np.int64)}
    return made | whole | {"position_ids": positions}


def two_calls(model: ir.Model) -> list[Array]:
    """Outputs of a prompt of five tokens and of a step after it, through whatever cache the graph has."""
    first = feeds(model, 5)
    before = run(model, first)
    step = feeds(model, 1)
    step["attention_mask"] = np.ones((2, 6), np.int64)
    step["position_ids"] = np.full((2, 1), 5, np.int64)
    for name in ("key", "value"):
        step[f"past_key_values.0.{name}"] = before[f"present.0.{name}"]
    return [before["z"], run(model, step)["z"]]


def check(model: ir.Model, fired: int) -> None:
    """The outputs of a prompt and a step are as before; then also those of the runtime's own kernel."""
    expected = two_calls(model)
    if fired:
        assert apply(PadHeads(), model).fired == {"widened heads": fired}
    else:
        assert left_alone(PadHeads(), model) == []
    for actual, wanted in zip(two_calls(model), expected, strict=True):
        close({"z": actual}, {"z": wanted}, rtol=1e-4, atol=1e-5)
    apply(LowerAttention(query_seqlens=True), model)
    assert "com.microsoft::GroupQueryAttention" in operators(model)
    for actual, wanted in zip(two_calls(model), expected, strict=True):
        close({"z": actual}, {"z": wanted}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("more", "options", "multiple"),
    [(PLAIN, "", 8), (ROTATED, "", 16), (ROTATED, ", interleaved=1", 16)],
    ids=["plain", "halves", "neighbours"],
)
def test_any_width_is_taken(width: int, more: str, options: str, multiple: int) -> None:
    model = make(width, more, options)
    check(model, fired=int(width % multiple > 0))
    wide = -(-width // multiple) * multiple
    assert [dims(value) for value in model.graph.inputs[-2:]] == [["batch", KV_HEADS, "past", wide]] * 2
    kernel = next(iter(GROUP_QUERY_ATTENTION.calls(model.graph)))
    assert kernel.attributes.get_float("scale", 0.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (NORMED, ", norm_epsilon=0.5"),
        (BOTH, ", norm_epsilon=0.5"),
        (BOTH, ", norm_epsilon=0.5, interleaved=1"),
        (ROTATED, ", softcap=2.0, window=3"),
    ],
)
def test_norms_windows_and_caps_go_on_as_before(more: str, options: str) -> None:
    check(make(20, more, options), fired=1)


@pytest.mark.parametrize(("more", "options"), [(PLAIN, ""), (ROTATED, ""), (ROTATED, ", interleaved=1")])
def test_packed_heads(more: str, options: str) -> None:
    check(make(20, more, options, packed=True), fired=1)


def test_layers_that_read_one_cache_and_share_their_tables() -> None:
    model = make(20, ROTATED, layers=2)
    check(model, fired=2)
    assert sorted(name for name in model.graph.initializers if name.startswith(("cos.", "sin."))) == [
        "cos.32",
        "sin.32",
    ]


def test_what_the_kernel_does_not_take_is_a_condition_of_its_lowering() -> None:
    reason = "GroupQueryAttention takes heads whose width is a multiple of 16 where it rotates them, not 24"
    assert left_alone(LowerAttention(query_seqlens=True), make(24, ROTATED)) == [reason]
    reason = "GroupQueryAttention takes heads whose width is a multiple of 8, not 20"
    assert left_alone(LowerAttention(query_seqlens=True), make(20)) == [reason]
    assert refused_head("width", rotary=False) is not None
    assert refused_head(512, rotary=True) is None


def test_part_of_a_head_rotated_inside_is_left_alone() -> None:
    model = make(20, ROTATED, ", rotary_embedding_dim=8")
    assert left_alone(PadHeads(), model) == ["it rotates part of each head only"]


def test_tables_that_are_not_constant_are_left_alone() -> None:
    model = make(20, ROTATED)
    table = cached_attention.INPUTS.index("cos_cache")
    node_of(model, cached_attention.NAME).replace_input_with(table, model.graph.inputs[1])
    assert left_alone(PadHeads(), model) == ["its tables of angles are not constant"]


def test_values_of_another_width_are_left_alone() -> None:
    model = make(20)
    value = next(item for item in model.graph.inputs if item.name == "v")
    value.shape = ir.Shape(["batch", "sequence", KV_HEADS * 16])
    assert left_alone(PadHeads(), model) == ["its queries, keys and values are not all 20 wide"]


def test_heads_of_unknown_width_are_no_site() -> None:
    model = make(20)
    next(item for item in model.graph.inputs if item.name == "q").shape = None
    assert left_alone(PadHeads(), model) == []
