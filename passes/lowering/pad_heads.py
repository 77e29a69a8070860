"""Heads as wide as the runtime's attention takes them.

    CachedAttention(q [.., H·100], k, v, past, cos [.., 50], …)
        →  Slice(CachedAttention(Pad(q) [.., H·112], Pad(k), Pad(v), past' , cos' [.., 56], …))     past' is 112 wide

Zeros beside query and key add nothing to a score, and zeros beside a value nothing to a sum. A head that is rotated
by halves is padded in each half, so that what turned with what still does, and its keys lie so in the cache:

    a a a a a b b b b b   →   a a a a a 0 0 0 b b b b b 0 0 0

The mean of a norm of heads counts the zeros, so its weight and epsilon make up for them. What it costs is the wider
cache and a copy of queries, keys, values and outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.microsoft import head_multiple
from llmc.passes.attention.head_padding import cut_heads, pad_heads, widen_cache
from llmc.passes.graph.graph_query import (
    add_initializer,
    copy_dtype,
    dims,
    insert_before,
    reshape,
    small_initializer,
)
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class PadHeads(FusionPass):
    """Pad heads whose width is no multiple of what GroupQueryAttention takes."""

    what: ClassVar[str] = "widened heads"
    order = Order(needs=(Fact.WIDTHS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention whose heads the kernel would refuse."""
        attentions = cached_attention.SIGNATURE.calls(model.graph)
        return [node for node in attentions if (width := _width(node)) is not None and width != _wanted(node, width)]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Pad one attention."""
        variant, given = cached_attention.variant_of(node), node.attributes
        old, inputs, graph = _width(node), cached_attention.SIGNATURE.arguments(node), model.graph
        assert old is not None
        width = _wanted(node, old)
        if variant.rotary and given.get_int("rotary_embedding_dim", 0) not in {0, old}:
            raise NearMiss("it rotates part of each head only")
        queries, pairs = (given.get_int(name, 0) for name in ("num_heads", "kv_num_heads"))
        apart = {"query": queries, "key": pairs, "value": pairs}
        counts = {"query": queries + 2 * pairs} if variant.packed else apart
        if any(_last(inputs[name]) != count * old for name, count in counts.items()):
            raise NearMiss(f"its queries, keys and values are not all {old} wide")
        parts = 2 if variant.rotary and not given.get_int("interleaved", 0) else 1
        tables = {name: _wider_table(graph, inputs[name], width) for name in ("cos_cache", "sin_cache")}
        inputs |= {name: table for name, table in tables.items() if table is not None}
        for name, count in counts.items():
            inputs[name] = pad_heads(graph, node, inputs[name], count * parts, width // parts)
        options: dict[str, int | float] = {}
        if variant.qk_norm:
            options["norm_epsilon"] = given.get_float("norm_epsilon", 1e-6) * old / width
            for name in ("q_norm_weight", "k_norm_weight"):
                inputs[name] = _wider_norm(graph, node, inputs[name], parts, width)
        output = node.outputs[0].shape
        for name in ("past_key", "past_value"):
            past = inputs[name]
            assert past is not None
            widen_cache(past, width)
        new = cached_attention.replace_call(node, inputs, options)
        for name in ("present_key", "present_value"):
            widen_cache(cached_attention.SIGNATURE.result(new, name), width)
        new.outputs[0].shape = output
        cut_heads(graph, new, queries * parts, width // parts, old // parts)


def _width(node: ir.Node) -> int | None:
    """Width of one head, of the queries: the cache may be another layer's, too, which widened it before."""
    query, heads = _last(cached_attention.get_input(node, "query")), node.attributes.get_int("num_heads", 0)
    if cached_attention.variant_of(node).packed:
        heads += 2 * node.attributes.get_int("kv_num_heads", 0)
    return None if query is None or not heads else query // heads


def _wanted(node: ir.Node, width: int) -> int:
    """The next width that the kernel takes."""
    multiple = head_multiple(rotary=cached_attention.variant_of(node).rotary)
    return math.ceil(width / multiple) * multiple


def _last(value: ir.Value | None) -> int | None:
    size = (dims(value) or [None])[-1]
    return size if isinstance(size, int) else None


def _wider_table(graph: ir.Graph, table: ir.Value | None, width: int) -> ir.Value | None:
    """A table of cosines or sines [positions, angles] for heads of ``width``; the zeros that are added turn zeros."""
    if table is None:
        return None
    if table.const_value is None or not table.is_initializer():
        raise NearMiss("its tables of angles are not constant")
    name = f"{table.name}.{width}"
    if (known := graph.initializers.get(name)) is not None:
        return known
    content = table.const_value.numpy()
    return add_initializer(graph, name, ir.tensor(np.pad(content, [(0, 0), (0, width // 2 - content.shape[1])])))


def _wider_norm(graph: ir.Graph, node: ir.Node, weight: ir.Value | None, parts: int, width: int) -> ir.Value:
    """A norm's weight [old] for heads of ``width``, whose mean is old / width of what it was."""
    assert weight is not None
    old = _last(weight)
    if old is None:
        raise NearMiss(f"the width of {weight.name} is not known")
    factor = small_initializer(graph, f"wider_norm_{old}_{width}", np.asarray(math.sqrt(old / width), np.float32))
    more = (width - old) // parts
    amount = small_initializer(graph, f"pad_norm_{more}", np.asarray([0, 0, 0, more], np.int64))
    scaled = ir.node("Mul", [weight, factor])
    copy_dtype(weight, scaled.outputs[0])
    split = reshape(graph, scaled.outputs[0], [parts, old // parts], [parts, old // parts])
    padded = ir.node("Pad", [split.outputs[0], amount])
    copy_dtype(weight, padded.outputs[0])
    merged = reshape(graph, padded.outputs[0], [width], [width])
    insert_before(node, [scaled, split, padded, merged])
    return merged.outputs[0]
