"""Keys and values of one width, for attention that wants it so.

    CachedAttention(q, k [.., Hk·192], v [.., Hk·128], past_k, past_v)
        →  Slice(CachedAttention(q, k, Pad(v) [.., Hk·192], past_k, past_v'))   past_v' is 192 wide

Zeros beside a value add nothing, and zeros beside query and key add nothing to a score. The narrower side of the
cache grows to the width of the other; that is what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.graph.graph_query import copy_dtype, dims, insert_before, reshape, small_initializer
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class EqualHeadWidths(FusionPass):
    """Pad the narrower of keys and values."""

    what: ClassVar[str] = "padded heads"
    order = Order(gives=(Fact.WIDTHS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention whose keys and values differ in width."""
        attentions = cached_attention.SIGNATURE.calls(model.graph)
        return [node for node in attentions if len(set(_widths(node))) == 2]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Pad one attention."""
        variant = cached_attention.variant_of(node)
        if variant.packed:
            raise NearMiss("its query, key and value are packed already")
        # Of its own keys and values: another layer that shares the cache may have widened that before.
        _, key, value = (_own_width(node, name) for name in ("query", "key", "value"))
        if key < value and (variant.rotary or variant.qk_norm):
            raise NearMiss("its keys are narrower than its values, and rotated or normalized inside")
        graph, width = model.graph, max(key, value)
        heads = {"query": node.attributes.get_int("num_heads", 0)}
        heads.update(dict.fromkeys(("key", "value"), node.attributes.get_int("kv_num_heads", 0)))
        narrow = ("query", "key") if key < value else ("value",)
        inputs = cached_attention.SIGNATURE.arguments(node)
        for name in narrow:
            inputs[name] = _pad(graph, node, inputs[name], heads[name], width)
        for name in set(narrow) - {"query"}:
            past = inputs[f"past_{name}"]
            assert past is not None
            _widen(past, width)
        output = node.outputs[0]
        new = cached_attention.replace_call(node, inputs, {})
        for name in set(narrow) - {"query"}:
            _widen(cached_attention.SIGNATURE.result(new, f"present_{name}"), width)
        if "value" in narrow:
            _cut(graph, new, heads["query"], width, value)
        else:
            new.outputs[0].shape = output.shape


def _widths(node: ir.Node) -> tuple[int, int]:
    shapes = (dims(cached_attention.get_input(node, name)) or [None] for name in ("past_key", "past_value"))
    key, value = (shape[-1] if isinstance(shape[-1], int) else 0 for shape in shapes)
    return key, value


def _own_width(node: ir.Node, name: str) -> int:
    """Width of one head of an input that is not packed."""
    value = cached_attention.get_input(node, name)
    assert value is not None
    shape = dims(value)
    if shape is None or not isinstance(shape[-1], int):
        raise NearMiss(f"the width of {value.name} is not known")
    return shape[-1] // node.attributes.get_int("num_heads" if name == "query" else "kv_num_heads", 1)


def _widen(value: ir.Value, width: int) -> None:
    """State the new width; where layers share a cache, another one may have been here before."""
    if value.shape is not None:
        value.shape = ir.Shape([*list(value.shape)[:-1], width])


def _pad(graph: ir.Graph, node: ir.Node, value: ir.Value | None, heads: int, width: int) -> ir.Value:
    """[batch, seq, heads x old] -> [batch, seq, heads x width], zeros at the end of each head."""
    assert value is not None
    assert value.shape is not None
    merged_width = value.shape[-1]
    assert isinstance(merged_width, int)
    old = merged_width // heads
    batch, seq = value.shape[0], value.shape[1]
    amount = small_initializer(graph, f"pad_heads_{width - old}", np.asarray([0] * 7 + [width - old], np.int64))
    split = reshape(graph, value, [0, 0, heads, old], [batch, seq, heads, old])
    padded = ir.node("Pad", [split.outputs[0], amount])
    copy_dtype(value, padded.outputs[0])
    padded.outputs[0].shape = ir.Shape([batch, seq, heads, width])
    merged = reshape(graph, padded.outputs[0], [0, 0, heads * width], [batch, seq, heads * width])
    insert_before(node, [split, padded, merged])
    return merged.outputs[0]


def _cut(graph: ir.Graph, node: ir.Node, heads: int, width: int, kept: int) -> None:
    """Drop the padding from the end of each head of the output."""
    output = node.outputs[0]
    assert output.shape is not None
    batch, seq = output.shape[0], output.shape[1]
    users = list(output.uses())
    output.shape = ir.Shape([batch, seq, heads * width])
    split = reshape(graph, output, [0, 0, heads, width], [batch, seq, heads, width])
    bounds = [small_initializer(graph, f"cut_{x}", np.asarray([x], np.int64)) for x in (0, kept, 3)]
    cut = ir.node("Slice", [split.outputs[0], *bounds])
    copy_dtype(output, cut.outputs[0])
    cut.outputs[0].shape = ir.Shape([batch, seq, heads, kept])
    merged = reshape(graph, cut.outputs[0], [0, 0, heads * kept], [batch, seq, heads * kept])
    graph.insert_after(node, [split, cut, merged])
    for user, index in users:
        user.replace_input_with(index, merged.outputs[0])
