"""Attention to ONNX Runtime.

    llmc::CachedAttention(packed, past_k, past_v, mask, cos, sin, …)
        →   com.microsoft::GroupQueryAttention(packed, past_k, past_v, lengths - 1, total, cos, sin)

GroupQueryAttention wants rows that start at slot 0 of the cache. ``seqlens_k`` is each row's number of ones in the
mask, less 1; the total is the mask's width; ``query_seqlens``, where the runtime has it, the number of ones in the
last columns, so that rows of one chunk may differ in length. Chunks and ALiBi become an ``attention_bias``. Norms of
queries and keys, which the CPU kernel does not take, become RMSNormalization nodes again, by head and without a
transposition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, PAST, PRESENT, SEQLENS, TOTAL_LENGTH, ContractPart
from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION, refused_head
from llmc.passes.attention.attention_bias import alibi_bias, chunk_bias
from llmc.passes.graph.chunk_lengths import chunk_lengths, find_value, total_lengths
from llmc.passes.graph.graph_query import copy_dtype, dims, graph_input, replace_node, reshape, small_initializer
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

KEY_OR_VALUE = re.compile(re.escape(PAST) + r"\d+\.(?:key|value)")
PRESENT_KEY = re.compile(re.escape(PRESENT) + r"\d+\.key")
SAME = (
    *("query", "key", "value", "past_key", "past_value", "cos_cache", "sin_cache", "head_sink"),
    *("q_norm_weight", "k_norm_weight"),
)
"""Inputs that both operators call the same and take alike."""


@dataclass(frozen=True)
class LowerAttention(FusionPass):
    """Replace each CachedAttention by GroupQueryAttention.

    Attributes:
        query_seqlens: The runtime's GroupQueryAttention has the input of that name.
        qk_norm: The runtime's kernel normalizes queries and keys itself.
        max_positions: Longest context; chunks that hold all of it change nothing. 0: no limit.
    """

    query_seqlens: bool
    qk_norm: bool = False
    max_positions: int = 0

    what: ClassVar[str] = "attention"
    domain: ClassVar[str] = GROUP_QUERY_ATTENTION.domain
    order = Order(needs=(Fact.FLOAT32, Fact.WIDTHS), gives=(Fact.ATTENTION,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention; and what makes a layer's cache in the place of one."""
        return attention_sites(model, GROUP_QUERY_ATTENTION.name)

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Lower one attention; the values that all of them need are computed once.

        All or none: the rows of a lowered attention's cache start at slot 0, those of the others follow the mask.
        """
        for attention in (node, *self.sites(model)):
            self._require_kernel(attention)
        refuse_counted_slots(model)
        self._lower(model.graph, node, self._lengths(model, node))

    def finish(self, model: ir.Model) -> None:
        """Sort: what all need may have been made near the end of the graph."""
        model.graph.sort()

    def states(self) -> ContractPart:
        """The kernel counts a row's tokens from slot 0."""
        return {"rows": "slot0", "ragged_chunks": self.query_seqlens}

    def _require_kernel(self, node: ir.Node) -> None:
        """Raise NearMiss where GroupQueryAttention cannot compute what the call asks for."""
        variant = attention_variant(node)
        # Rotation outside is right as well, but position_ids then decide it and rows need not start at 0.
        if variant.rotary and node.attributes.get_int("rotary_embedding_dim", 0) != 0:
            raise NearMiss("it rotates part of each head only")
        if variant.chunked and not self.query_seqlens:
            raise NearMiss("it attends within chunks, whose mask needs the runtime to take query_seqlens")
        if variant.alibi and variant.chunked:
            raise NearMiss("it has ALiBi and attends within chunks, and the kernel takes one bias")
        if variant.alibi and variant.sinks:
            raise NearMiss("it has ALiBi and sinks, beside which a bias that rows share up to a constant is wrong")
        key, value = (dims(cached_attention.get_input(node, name)) for name in ("past_key", "past_value"))
        if key is not None and value is not None and key[3] != value[3]:
            raise NearMiss(f"its keys are {key[3]} wide and its values {value[3]}")
        if key is not None and (reason := refused_head(key[3], rotary=variant.rotary)) is not None:
            raise NearMiss(reason)
        if variant.qk_norm and not self.qk_norm:
            if variant.packed:
                raise NearMiss("its query is packed, so its heads cannot be normalized one by one")
            widths = [dims(cached_attention.get_input(node, name)) for name in ("query", "key", "q_norm_weight")]
            if not all(shape is not None and isinstance(shape[-1], int) for shape in widths):
                raise NearMiss("the width of its query or key is not known")

    def _lengths(self, model: ir.Model, before: ir.Node) -> dict[str, ir.Value]:
        """The operator's scalar and per-row lengths; made at the first attention, found again at the others."""
        names = [SEQLENS, TOTAL_LENGTH, *(["query_seqlens"] if self.query_seqlens else [])]
        known = {name: find_value(model.graph, name) for name in names}
        if all(value is not None for value in known.values()):
            return {name: value for name, value in known.items() if value is not None}
        graph = model.graph
        mask = graph_input(model, ATTENTION_MASK)
        totals, nodes = total_lengths(model)
        one = small_initializer(graph, "one", np.asarray(1, np.int64))
        int32 = {"to": int(ir.DataType.INT32)}
        less = ir.node("Sub", [totals, one], name="seqlens_k/Sub")
        seqlens = ir.node("Cast", [less.outputs[0]], int32, name="seqlens_k/Cast")
        width = ir.node("Shape", [mask], {"start": 1, "end": 2}, name="total_sequence_length/Shape")
        scalar = ir.node("Squeeze", [width.outputs[0]], name="total_sequence_length/Squeeze")
        total = ir.node("Cast", [scalar.outputs[0]], int32, name="total_sequence_length/Cast")
        made = [seqlens.outputs[0], total.outputs[0]]
        nodes = [*nodes, less, seqlens, width, scalar, total]
        if self.query_seqlens:
            lengths, more = chunk_lengths(model)
            cast = ir.node("Cast", [lengths], int32, name="query_seqlens/Cast")
            nodes += [*more, cast]
            made.append(cast.outputs[0])
        for name, value in zip(names, made, strict=True):
            value.name = name
        graph.insert_before(next(iter(graph), before), nodes)
        return dict(zip(names, made, strict=True))

    def _lower(self, graph: ir.Graph, node: ir.Node, shared: dict[str, ir.Value]) -> None:
        given, attributes = cached_attention.SIGNATURE.arguments(node), _attributes(node)
        inputs = {name: given[name] for name in SAME} | shared
        if given["q_norm_weight"] is not None and not self.qk_norm:
            for name, weight in (("query", "q_norm"), ("key", "k_norm")):
                inputs[name] = _norm_by_head(graph, node, given[name], inputs.pop(f"{weight}_weight"), weight)
        elif given["q_norm_weight"] is not None:
            attributes["qk_norm_epsilon"] = node.attributes.get_float("norm_epsilon", 1e-6)
        inputs["attention_bias"] = self._bias(graph, node, shared)
        new = GROUP_QUERY_ATTENTION.make(inputs, attributes, num_outputs=3, name=node.name)
        replace_node(node, [new], new.outputs)

    def _bias(self, graph: ir.Graph, node: ir.Node, shared: dict[str, ir.Value]) -> ir.Value | None:
        """What is added to the scores, if anything."""
        slopes, chunk = cached_attention.get_input(node, "alibi_slopes"), node.attributes.get_int("chunk", 0)
        if slopes is not None:
            return alibi_bias(graph, node, slopes, shared)
        return chunk_bias(graph, node, chunk, shared) if chunk and not 0 < self.max_positions <= chunk else None


def attention_sites(model: ir.Model, kernel: str) -> list[ir.Node]:
    """Every CachedAttention; and what makes a layer's cache in the place of one or of ``kernel``."""
    makers = [value.producer() for value in model.graph.outputs if PRESENT_KEY.fullmatch(value.name or "")]
    own = {cached_attention.NAME, kernel}
    others = [node for node in makers if node is not None and node.op_type not in own]
    return [*cached_attention.SIGNATURE.calls(model.graph), *others]


def attention_variant(node: ir.Node) -> cached_attention.Variant:
    """The variant of a site; raises NearMiss where that is no attention."""
    if not cached_attention.is_cached_attention(node):
        raise NearMiss(f"it makes {node.outputs[0].name}, but is {node.op_type} and no attention")
    return cached_attention.variant_of(node)


def refuse_counted_slots(model: ir.Model) -> None:
    """Raise NearMiss where a node asks for the cache's length, as a model that makes positions or masks of it."""
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Shape" and not node.domain else None
        if source is None or not source.is_graph_input() or not KEY_OR_VALUE.fullmatch(source.name or ""):
            continue
        # Either may be counted from the end.
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)
        if 2 in range(4)[start:end] and any(True for _ in node.outputs[0].uses()):
            counted = node.name or node.op_type
            raise NearMiss(
                f"{counted} counts slots of the cache, the same for all rows, so rows cannot start at slot 0"
            )


def _attributes(node: ir.Node) -> dict[str, int | float]:
    given = node.attributes
    attributes: dict[str, int | float] = {
        "num_heads": given.get_int("num_heads", 0),
        "kv_num_heads": given.get_int("kv_num_heads", 0),
        "scale": given.get_float("scale", 0.0),
    }
    if cached_attention.variant_of(node).rotary:
        attributes["do_rotary"] = 1
        attributes["rotary_interleaved"] = given.get_int("interleaved", 0)
    if window := given.get_int("window", 0):
        attributes["local_window_size"] = window
    if softcap := given.get_float("softcap", 0.0):
        attributes["softcap"] = softcap
    return attributes


def _norm_by_head(
    graph: ir.Graph, node: ir.Node, value: ir.Value | None, weight: ir.Value | None, name: str
) -> ir.Value:
    assert value is not None
    assert value.shape is not None
    assert weight is not None
    assert weight.shape is not None
    dim, width = weight.shape[-1], value.shape[-1]
    assert isinstance(dim, int)
    assert isinstance(width, int)
    stem, heads = f"{node.name}/{name}", width // dim
    options: dict[str, int | float] = {"axis": -1, "epsilon": node.attributes.get_float("norm_epsilon", 1e-6)}
    by_head = reshape(graph, value, [0, 0, heads, dim], [*value.shape[:2], heads, dim], f"{stem}/split")
    norm = ir.node("RMSNormalization", [by_head.outputs[0], weight], options, name=f"{stem}/norm")
    copy_dtype(value, norm.outputs[0])
    norm.outputs[0].shape = by_head.outputs[0].shape
    merged = reshape(graph, norm.outputs[0], [0, 0, width], value.shape, f"{stem}/merge")
    graph.insert_before(node, [by_head, norm, merged])
    return merged.outputs[0]
