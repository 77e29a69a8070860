"""Keys and values of one width, for attention that wants it so.

    CachedAttention(q, k [.., Hk·192], v [.., Hk·128], past_k, past_v)
        →  Slice(CachedAttention(q, k, Pad(v) [.., Hk·192], past_k, past_v'))   past_v' is 192 wide

Zeros beside a value add nothing, and zeros beside query and key add nothing to a score. The narrower side of the
cache grows to the width of the other; that is what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.attention.head_padding import cut_heads, pad_heads, widen_cache
from llmc.passes.graph.graph_query import dims
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
            inputs[name] = pad_heads(graph, node, inputs[name], heads[name], width)
        for name in set(narrow) - {"query"}:
            past = inputs[f"past_{name}"]
            assert past is not None
            widen_cache(past, width)
        output = node.outputs[0]
        new = cached_attention.replace_call(node, inputs, {})
        for name in set(narrow) - {"query"}:
            widen_cache(cached_attention.SIGNATURE.result(new, f"present_{name}"), width)
        if "value" in narrow:
            cut_heads(graph, new, heads["query"], width, value)
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
