from __future__ import annotations

from typing import Literal

import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import node_label
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.set_cache_io import SetCacheIO
from llmc.passes.lowering.use_standard_attention import UseStandardAttention

from ..graphs import apply, left_alone, node_of, parse

TEXT = """m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, int64[batch, seq] position_ids,
    float[batch, seq, 64] q, float[batch, seq, 32] k, float[batch, seq, 32] v,
    float[batch, 2, past, 16] "past_key_values.0.key", float[batch, 2, past, 16] "past_key_values.0.value")
    => (logits, float[batch, 2, length, 16] "present.0.key", float[batch, 2, length, 16] "present.0.value")
{
    logits, "present.0.key", "present.0.value" = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.25>(
        q, k, v, "past_key_values.0.key", "past_key_values.0.value", attention_mask)
}"""


def make(*, lowered: bool = True) -> ir.Model:
    model = parse(TEXT)
    if lowered:
        LowerAttention(query_seqlens=True)(model)
    return model


def lengths(model: ir.Model) -> list[object]:
    values = [*model.graph.inputs, *model.graph.outputs]
    found = [dims(value) for value in values if value.name and value.name.startswith(("past_key", "present"))]
    assert all(shape is not None and [shape[0], shape[1], shape[3]] == ["batch", 2, 16] for shape in found)
    return [shape[2] for shape in found if shape is not None]


@pytest.mark.parametrize(("kind", "past", "present"), [("grow", "past", "total"), ("shared", "capacity", "capacity")])
def test_the_lengths_have_names(kind: Literal["grow", "shared"], past: str, present: str) -> None:
    model = make()
    tally = apply(SetCacheIO(kind), model)
    assert lengths(model) == [past, past, present, present]
    assert tally.fired == {"dimensions": 2 if kind == "grow" else 4, "unused inputs": 1}


def test_one_can_become_the_other() -> None:
    model = make()
    apply(SetCacheIO("shared"), model)
    apply(SetCacheIO("grow"), model)
    assert lengths(model) == ["past", "past", "total", "total"]


def test_positions_that_nothing_reads_are_no_input() -> None:
    model = make()
    apply(SetCacheIO("shared"), model)
    assert "position_ids" not in [value.name for value in model.graph.inputs]


def test_positions_that_something_reads_stay() -> None:
    model = make()
    positions = next(value for value in model.graph.inputs if value.name == "position_ids")
    model.graph.append(ir.node("Identity", [positions]))
    assert apply(SetCacheIO("shared"), model).fired == {"dimensions": 4}
    assert "position_ids" in [value.name for value in model.graph.inputs]


def test_a_portable_graph_may_grow() -> None:
    model = make(lowered=False)
    apply(SetCacheIO("grow"), model)
    assert lengths(model) == ["past", "past", "total", "total"]


def test_a_portable_graph_has_no_shared_cache() -> None:
    """Its attention makes a longer tensor of the past and the new, so the cache grows, and the pass says why."""
    model = make(lowered=False)
    tally = apply(SetCacheIO("shared"), model)
    assert lengths(model) == ["past", "past", "total", "total"]
    assert tally.contract == {"cache": "grow"}
    (rejection,) = tally.rejections
    assert rejection.reason == "it makes present.0.key and does not write in place, so the cache grows"
    assert rejection.node == node_label(node_of(model, "CachedAttention"))


def test_one_layer_that_does_not_write_in_place_is_enough() -> None:
    """A runtime binds all of a cache in one way."""
    past = ", ".join(f'float[batch, 2, past, 16] "past_key_values.1.{kind}"' for kind in ("key", "value"))
    call = """extra, "present.1.key", "present.1.value" =
        llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.25>(
            q, k, v, "past_key_values.1.key", "past_key_values.1.value", attention_mask)"""
    text = TEXT.replace("m (", f"m ({past}, ").replace("=> (", '=> (extra, "present.1.key", "present.1.value", ')
    model = parse(text.replace("}", f"{call} }}"))
    first = next(iter(model.graph))
    lowered = ir.node("GroupQueryAttention", first.inputs, domain="com.microsoft", num_outputs=3)
    ir.convenience.replace_nodes_and_values(
        model.graph, first, [first], [lowered], list(first.outputs), list(lowered.outputs)
    )
    tally = apply(SetCacheIO("shared"), model)
    assert tally.contract == {"cache": "grow"}
    assert [r.reason.split(" and ")[0] for r in tally.rejections] == ["it makes present.1.key"]


@pytest.mark.parametrize("kind", ["key", "value"])
def test_one_side_of_a_layer_is_enough(kind: str) -> None:
    model = make()
    attention = node_of(model, "GroupQueryAttention")
    side = attention.outputs[1 if kind == "key" else 2]
    name, side.name = side.name, "written"
    after = ir.node("Neg", [side])
    after.outputs[0].name, after.outputs[0].shape, after.outputs[0].type = name, side.shape, side.type
    model.graph.append(after)
    model.graph.outputs[[value is side for value in model.graph.outputs].index(True)] = after.outputs[0]
    tally = apply(SetCacheIO("shared"), model)
    assert lengths(model) == ["past", "past", "total", "total"]
    assert [r.reason.split(" and ")[0] for r in tally.rejections] == [f"it makes present.0.{kind}"]


@pytest.mark.parametrize(("cache", "kind"), [("scatter", "shared"), ("concat", "grow")])
def test_a_scatter_writes_in_place(cache: Literal["scatter", "concat"], kind: str) -> None:
    model = make(lowered=False)
    UseStandardAttention(cache)(model)
    tally = apply(SetCacheIO("shared"), model)
    assert tally.contract == {"cache": kind}
    assert bool(tally.rejections) == (kind == "grow")


def with_tensor(name: str, shape: str, op: str) -> ir.Model:
    """The lowered graph and one more tensor of a cache beside keys and values."""
    text = TEXT.replace("=> (logits,", f'=> (logits, "present.{name}",')
    text = text.replace(
        "(int64[batch, seq] input_ids", f'({shape} "past_key_values.{name}", int64[batch, seq] input_ids'
    )
    model = parse(text.replace("}", f'"present.{name}" = {op} }}'))
    LowerAttention(query_seqlens=True)(model)
    return model


@pytest.mark.parametrize("kind", ["grow", "shared"])
def test_states_keep_their_shape(kind: Literal["grow", "shared"]) -> None:
    """They have no slot per token, so they go round with either kind."""
    name = "past_key_values.1.conv_state"
    model = with_tensor("1.conv_state", "float[batch, 2, 3, 16]", f'Neg("{name}")')
    tally = apply(SetCacheIO(kind), model)
    state = next(value for value in model.graph.inputs if value.name == name)
    assert dims(state) == ["batch", 2, 3, 16]
    assert dims(next(v for v in model.graph.outputs if v.name == "present.1.conv_state")) == ["batch", 2, 3, 16]
    assert tally.contract == {"cache": kind}


def test_keys_of_an_indexer_grow() -> None:
    """They are appended by the graph itself: nothing writes them into a fixed buffer."""
    name = "past_key_values.0.indexer_key"
    model = with_tensor("0.indexer_key", "float[batch, past, 32]", f'Concat<axis=1>("{name}", k)')
    tally = SetCacheIO("shared")(model).tally
    assert dims(next(value for value in model.graph.inputs if value.name == name)) == ["batch", "past", 32]
    assert tally.contract == {"cache": "grow"}
    assert [rejection.reason for rejection in tally.rejections] == [
        "it makes present.0.indexer_key and does not write in place, so the cache grows"
    ]


@pytest.mark.parametrize("shape", [None, ir.Shape(["batch", None, 3])], ids=["no rank", "one size"])
def test_a_tensor_of_unknown_shape_may_grow(shape: ir.Shape | None) -> None:
    """So nothing says that it could be kept in one buffer."""
    name = "past_key_values.1.conv_state"
    model = with_tensor("1.conv_state", "float[batch, 2, 3]", f'Neg("{name}")')
    next(value for value in model.graph.inputs if value.name == name).shape = shape
    tally = apply(SetCacheIO("shared"), model)
    assert tally.contract == {"cache": "grow"}
    assert [rejection.reason for rejection in tally.rejections] == [
        "it makes present.1.conv_state and does not write in place, so the cache grows"
    ]


def test_a_cache_of_states_alone_has_no_slots() -> None:
    text = """m (int64[batch, seq] input_ids, float[batch, 4, 8] "past_key_values.0.recurrent_state")
        => (float[batch, 4, 8] "present.0.recurrent_state") {
        "present.0.recurrent_state" = Neg("past_key_values.0.recurrent_state") }"""
    model = parse(text)
    assert left_alone(SetCacheIO("shared"), model) == []
    for kind in ("shared", "grow"):
        assert SetCacheIO(kind)(model).tally.contract == {"cache": "shared"}  # type: ignore[arg-type]


def test_a_graph_as_asked_for_is_left_alone() -> None:
    model = make()
    SetCacheIO("grow")(model)
    assert left_alone(SetCacheIO("grow"), model) == []
