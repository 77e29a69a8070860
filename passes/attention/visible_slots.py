"""Which slots of the cache each token sees, as a value that all layers with the same window share.

In: a graph, and where a chunk's rows lie in the cache. Out: [batch, 1, seq, slots] bool, and how many tokens back
each slot is.

    by_mask      slot t holds column t of the attention mask, which may have holes (llmc::CachedAttention's own rule)
    by_length    each row's tokens lie from slot 0 on; the chunk's first token goes to slot ``past_lengths[row]``

A token always sees itself, so that rows of padding stay finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS, PAST_LENGTHS
from llmc.compiler.graph.operators.cached_attention import Reach
from llmc.passes.graph.chunk_lengths import find_value, past_lengths
from llmc.passes.graph.graph_query import graph_input
from llmc.passes.graph.node_builder import NodeBuilder

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


@dataclass(frozen=True)
class Slots:
    """What a mask needs to know.

    Attributes:
        visible: [batch or 1, 1, seq, slots] bool.
        distance: [batch or 1, 1, seq, slots] int64: tokens from the slot to the query; negative for later ones.
    """

    visible: ir.Value
    distance: ir.Value


def visible_slots(
    model: ir.Model, past_key: ir.Value, before: ir.Node, reach: Reach, layout: Literal["by_mask", "by_length"]
) -> Slots:
    """Make the values, or find those that an earlier layer's attention asked for.

    Args:
        model: Gets the nodes.
        past_key: A layer's cache, [batch, kv_heads, slots, head_dim].
        before: The node before which new nodes go.
        reach: How far this layer looks.
        layout: Where rows lie in the cache.
    """
    graph = model.graph
    stem = f"attention/{layout}" + (f".window_{reach.window}" if reach.window else "")
    stem += f".chunk_{reach.chunk}" if reach.chunk else ""
    found = find_value(graph, f"{stem}/visible"), find_value(graph, f"{stem}/distance")
    if found[0] is not None and found[1] is not None:
        return Slots(found[0], found[1])
    make = NodeBuilder(graph, stem)
    made = _by_mask(model, make, reach) if layout == "by_mask" else _by_length(model, make, past_key, reach)
    made.visible.name, made.distance.name = f"{stem}/visible", f"{stem}/distance"
    made.visible.dtype, made.distance.dtype = BOOL, INT64
    graph.insert_before(before, make.nodes)
    return made


def _by_mask(model: ir.Model, make: NodeBuilder, reach: Reach) -> Slots:
    ids, mask = graph_input(model, INPUT_IDS), graph_input(model, ATTENTION_MASK)
    seq = make.op("Squeeze", make.op("Shape", ids, start=1, end=2))
    total = make.op("Squeeze", make.op("Shape", mask, start=1, end=2))
    zero, one = make.integer(0), make.integer(1)
    rows = make.op("Range", make.op("Sub", total, seq), total, one)
    columns = make.op("Range", zero, total, one)
    ahead = make.op("Sub", make.op("Unsqueeze", rows, make.integers(1)), columns)
    real = make.op("Cast", mask, to=int(BOOL))
    counted = make.op("CumSum", make.op("Cast", real, to=int(INT64)), one)
    own = make.op("Unsqueeze", make.op("Gather", counted, rows, axis=1), make.integers(2))
    tokens = make.op("Sub", own, make.op("Unsqueeze", counted, make.integers(1)))
    near = make.op("GreaterOrEqual", ahead, zero)
    if reach.window:
        near = make.op("And", near, make.op("Less", tokens, make.integer(reach.window)))
    if reach.chunk:
        number = make.op("Div", make.op("Sub", counted, one), make.integer(reach.chunk))
        mine = make.op("Unsqueeze", make.op("Gather", number, rows, axis=1), make.integers(2))
        near = make.op("And", near, make.op("Equal", mine, make.op("Unsqueeze", number, make.integers(1))))
    near = make.op("And", near, make.op("Unsqueeze", real, make.integers(1)))
    visible = make.op("Or", near, make.op("Equal", ahead, zero))
    return Slots(make.op("Unsqueeze", visible, make.integers(1)), make.op("Unsqueeze", tokens, make.integers(1)))


def _by_length(model: ir.Model, make: NodeBuilder, past_key: ir.Value, reach: Reach) -> Slots:
    ids = graph_input(model, INPUT_IDS)
    zero, one = make.integer(0), make.integer(1)
    known = find_value(model.graph, PAST_LENGTHS)
    past, nodes = (known, []) if known is not None else past_lengths(model)
    make.nodes += nodes
    seq = make.op("Squeeze", make.op("Shape", ids, start=1, end=2))
    capacity = make.op("Squeeze", make.op("Shape", past_key, start=2, end=3))
    first = make.op("Unsqueeze", past, make.integers(1))
    slots = make.op("Unsqueeze", make.op("Add", first, make.op("Range", zero, seq, one)), make.integers(2))
    columns = make.op("Range", zero, capacity, one)
    tokens = make.op("Sub", slots, columns)
    visible = make.op("GreaterOrEqual", tokens, zero)
    if reach.window:
        visible = make.op("And", visible, make.op("Less", tokens, make.integer(reach.window)))
    if reach.chunk:
        size = make.integer(reach.chunk)
        same = make.op("Equal", make.op("Div", slots, size), make.op("Div", columns, size))
        visible = make.op("And", visible, same)
    return Slots(make.op("Unsqueeze", visible, make.integers(1)), make.op("Unsqueeze", tokens, make.integers(1)))
