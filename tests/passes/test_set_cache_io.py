from __future__ import annotations

from typing import Literal

import onnx_ir as ir
import pytest

from llmc.compiler.errors import PassError
from llmc.passes.graph_pass import Tally
from llmc.passes.graph_query import dims
from llmc.passes.lower_attention import LowerAttention
from llmc.passes.set_cache_io import SetCacheIO

from .graphs import apply, left_alone, parse

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
    """Its attention makes a longer tensor of the past and the new."""
    message = "a shared cache needs attention that writes in place; lower the graph to a target first"
    with pytest.raises(PassError, match=message):
        SetCacheIO("shared").rewrite(make(lowered=False), Tally())


def test_a_graph_as_asked_for_is_left_alone() -> None:
    model = make()
    SetCacheIO("grow")(model)
    assert left_alone(SetCacheIO("grow"), model) == []
