"""Attention to the operators of the ONNX standard, for runtimes that have no cache of their own.

    llmc::CachedAttention(q, k, v, past_k, past_v, mask)
        →   present = Concat(past, new)                         cache="concat": it grows, rows follow the mask
        or  present = TensorScatter(past, new, past_lengths)    cache="scatter": one buffer, rows start at slot 0
            output  = Attention(q, present_k, present_v, visible)

``visible`` is an explicit boolean mask and ``is_causal`` is 0: over a padded cache the operator's own causal rule is
read differently from runtime to runtime, and ``nonpad_kv_seqlen`` is dropped by some in silence. Softcap and sinks,
which the operator of some runtimes lacks, are computed as the operator's specification has them; ALiBi is added by
the mask. The mask is made once for all layers that look equally far back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import PAST_LENGTHS, ContractPart
from llmc.compiler.graph.operators import cached_attention
from llmc.passes.attention.attention_bias import LOWEST
from llmc.passes.attention.visible_slots import Slots, visible_slots
from llmc.passes.graph.chunk_lengths import find_value, past_lengths
from llmc.passes.graph.graph_query import copy_dtype, dims, replace_node
from llmc.passes.graph.node_builder import NodeBuilder
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order
from llmc.passes.lowering.lower_attention import attention_sites, attention_variant, refuse_counted_slots

OPSET = 24
"""The first with TensorScatter, and an Attention over its cache."""
KERNEL, SCATTER = "Attention", "TensorScatter"


@dataclass(frozen=True)
class UseStandardAttention(FusionPass):
    """Replace each CachedAttention by an update of its cache and an Attention.

    Attributes:
        cache: ``concat``: the cache grows by the chunk, and its slots are the columns of the mask; ``scatter``: it
            has a fixed length, and each row's tokens lie from slot 0 on.
        max_positions: Longest context; windows and chunks that hold all of it change nothing. 0: no limit.
    """

    cache: Literal["concat", "scatter"]
    max_positions: int = 0

    what: ClassVar[str] = "attention"

    @property
    def order(self) -> Order:
        """TensorRT's operator has one width for keys and values."""
        widths = (Fact.WIDTHS,) if self.cache == "scatter" else ()
        return Order((Fact.FLOAT32, *widths), (Fact.ATTENTION,), (Fact.LAYOUTS, Fact.NOTHING_DEAD))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention; and what makes a layer's cache in the place of one."""
        return attention_sites(model, SCATTER if self.cache == "scatter" else "Concat")

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Lower one attention; into a fixed cache all or none, since all layers' rows start at the same slots."""
        for attention in (node, *self.sites(model)) if self.cache == "scatter" else (node,):
            _require_plain(attention)
        # Asked of the graph as it came: masks of this pass count slots, too.
        if self.cache == "scatter" and find_value(model.graph, PAST_LENGTHS) is None:
            refuse_counted_slots(model)
        self._lower(model, node)

    def finish(self, model: ir.Model) -> None:
        """Declare the operators' version, and sort: what all layers need may have been made near the end."""
        model.graph.opset_imports[""] = max(OPSET, model.graph.opset_imports.get("", 0))
        model.ir_version = max(model.ir_version, 11)
        model.graph.sort()

    def states(self) -> ContractPart:
        """A fixed cache is written from slot 0 on."""
        return {"rows": "slot0", "cache": "shared"} if self.cache == "scatter" else {}

    def _lower(self, model: ir.Model, node: ir.Node) -> None:
        graph, given = model.graph, node.attributes
        make = NodeBuilder(graph, node.name or "attention")
        heads, kv_heads = given.get_int("num_heads", 0), given.get_int("kv_num_heads", 0)
        query, key, value = (_required(node, name) for name in ("query", "key", "value"))
        past_key, past_value = _required(node, "past_key"), _required(node, "past_value")
        slots = visible_slots(model, past_key, node, self._reach(node), self._layout)
        q = _by_head(make, query, heads)
        new = [_by_head(make, key, kv_heads), _by_head(make, value, kv_heads)]
        presents = [self._append(model, make, *pair) for pair in zip((past_key, past_value), new, strict=True)]
        for made, old in zip(presents, node.outputs[1:], strict=True):
            made.shape = old.shape
            copy_dtype(past_key, made)
        if cached_attention.variant_of(node).softcap or cached_attention.variant_of(node).sinks:
            attended = _arithmetic(make, node, q, presents, slots)
        else:
            mask = slots.visible
            if (slopes := cached_attention.get_input(node, "alibi_slopes")) is not None:
                mask = _alibi(make, slopes, query, slots)
            attended = make.op(KERNEL, q, *presents, mask, scale=given.get_float("scale", 0.0))
        batch, seq, width = *(dims(query) or [None, None])[:2], _width(value, kv_heads)
        turned = make.op("Transpose", attended, perm=[0, 2, 1, 3], shape=[batch, seq, heads, width])
        merged = make.op("Reshape", turned, make.integers(0, 0, heads * width))
        for made in (attended, turned, merged):
            copy_dtype(query, made)
        attended.shape = ir.Shape([batch, heads, seq, width])
        replace_node(node, make.nodes, [merged, *presents])

    @property
    def _layout(self) -> Literal["by_mask", "by_length"]:
        return "by_mask" if self.cache == "concat" else "by_length"

    def _reach(self, node: ir.Node) -> cached_attention.Reach:
        """How far a layer looks back, less what no context is long enough for."""
        far = {name: node.attributes.get_int(name, 0) for name in ("window", "chunk")}
        limit = self.max_positions
        return cached_attention.Reach(**{name: size if not 0 < limit <= size else 0 for name, size in far.items()})

    def _append(self, model: ir.Model, make: NodeBuilder, past: ir.Value, new: ir.Value) -> ir.Value:
        if self.cache == "concat":
            return make.op("Concat", past, new, axis=2)
        lengths, nodes = past_lengths(model)
        make.nodes += nodes
        return make.op(SCATTER, past, new, lengths, axis=2)


def _require_plain(node: ir.Node) -> None:
    variant = attention_variant(node)
    for part, there in (("query", variant.packed), ("rotation", variant.rotary), ("norms", variant.qk_norm)):
        if there:
            raise NearMiss(f"its {part} moved into the operator for another runtime")
    for name in ("query", "key", "value"):
        if not isinstance((dims(cached_attention.get_input(node, name)) or [None])[-1], int):
            raise NearMiss(f"the width of its {name} is not known")


def _required(node: ir.Node, name: str) -> ir.Value:
    value = cached_attention.get_input(node, name)
    assert value is not None
    return value


def _width(value: ir.Value, heads: int) -> int:
    """Of one head."""
    shape = dims(value)
    assert shape is not None
    assert isinstance(shape[-1], int)
    return shape[-1] // heads


def _by_head(make: NodeBuilder, value: ir.Value, heads: int) -> ir.Value:
    """[batch, seq, heads x width] as [batch, heads, seq, width]."""
    width = _width(value, heads)
    batch, seq = (dims(value) or [None, None])[:2]
    split = make.op("Reshape", value, make.integers(0, 0, heads, width), shape=[batch, seq, heads, width])
    turned = make.op("Transpose", split, perm=[0, 2, 1, 3], shape=[batch, heads, seq, width])
    copy_dtype(value, split)
    copy_dtype(value, turned)
    return turned


def _alibi(make: NodeBuilder, slopes: ir.Value, query: ir.Value, slots: Slots) -> ir.Value:
    """[batch, heads, seq, slots] float: ``-slope x distance`` where a slot is seen."""
    by_head = make.op("Reshape", slopes, make.integers(1, -1, 1, 1))
    distance = make.op("Cast", slots.distance, to=int(ir.DataType.FLOAT))
    bias = make.op("Neg", make.op("Mul", by_head, distance))
    hidden = make.constant("hidden", np.asarray(LOWEST, np.float32))
    return make.in_type_of(query, make.op("Where", slots.visible, bias, hidden))


def _arithmetic(make: NodeBuilder, node: ir.Node, q: ir.Value, presents: list[ir.Value], slots: Slots) -> ir.Value:
    """Scores, softcap, mask, softmax with sinks, values: [batch, heads, seq, width]."""
    given, variant = node.attributes, cached_attention.variant_of(node)
    heads, kv_heads = given.get_int("num_heads", 0), given.get_int("kv_num_heads", 0)
    shape = dims(q)
    assert shape is not None
    assert isinstance(shape[-1], int)
    grouped = make.op("Reshape", q, make.integers(0, kv_heads, heads // kv_heads, -1, shape[-1]))
    keys = make.op("Unsqueeze", make.op("Transpose", presents[0], perm=[0, 1, 3, 2]), make.integers(2))
    values = make.op("Unsqueeze", presents[1], make.integers(2))
    # In float32, as transformers' eager attention has it.
    scores = make.op("Cast", make.op("MatMul", grouped, keys), to=int(ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)
    scores = make.op("Mul", scores, _float(make, "scale", given.get_float("scale", 0.0)))
    if variant.softcap:
        cap = _float(make, "softcap", given.get_float("softcap", 0.0))
        scores = make.op("Mul", make.op("Tanh", make.op("Div", scores, cap)), cap)
    axis = make.integers(2)
    if (slopes := cached_attention.get_input(node, "alibi_slopes")) is not None:
        by_head = make.op("Reshape", slopes, make.integers(1, kv_heads, heads // kv_heads, 1, 1))
        distance = make.op("Cast", make.op("Unsqueeze", slots.distance, axis), to=int(ir.DataType.FLOAT))
        scores = make.op("Sub", scores, make.op("Mul", by_head, distance))
    scores = make.op("Where", make.op("Unsqueeze", slots.visible, axis), scores, _float(make, "hidden", LOWEST))
    if (sinks := cached_attention.get_input(node, "head_sink")) is None:
        weights = make.op("Softmax", scores, axis=-1)
    else:
        weights = _softmax_with_sinks(make, scores, sinks, kv_heads, heads // kv_heads)
    attended = make.op("MatMul", make.in_type_of(q, weights), values)
    width = (dims(presents[1]) or [None])[-1]
    return make.op("Reshape", attended, make.integers(0, heads, -1, width if isinstance(width, int) else -1))


def _softmax_with_sinks(make: NodeBuilder, scores: ir.Value, sinks: ir.Value, kv_heads: int, group: int) -> ir.Value:
    """Softmax over the scores and one more column per head, which then is dropped."""
    sink = make.op("Cast", sinks, to=int(ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)
    sink = make.op("Reshape", sink, make.integers(1, kv_heads, group, 1, 1))
    column = make.op("Concat", make.op("Shape", scores, end=4), make.integers(1), axis=0)
    joined = make.op("Concat", scores, make.op("Expand", sink, column), axis=-1)
    weights = make.op("Softmax", joined, axis=-1)
    return make.op("Slice", weights, make.integers(0), make.integers(-1), make.integers(-1))


def _float(make: NodeBuilder, name: str, number: float) -> ir.Value:
    return make.constant(name, np.asarray(number, np.float32))
