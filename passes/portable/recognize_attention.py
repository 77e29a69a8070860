"""Attention that was traced as arithmetic to the attention operator, recognised by what it computes.

    present_key   = Concat(past_key, key)
    present_value = Concat(past_value, value)
    output        = MatMul(…Softmax(…MatMul(query, …present_key)…), …present_value)
        →   output, present_key, present_value = llmc::CachedAttention(query, key, value, past_key, past_value, mask)

The arithmetic between the cuts is not matched: it is run, on small inputs, and compared with the operator's own body
(:mod:`llmc.passes.attention.measure_attention`). Layers with the same arithmetic and constants are measured once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK
from llmc.compiler.graph.operators import cached_attention
from llmc.compiler.graph.operators.domain import DOMAIN, VERSION
from llmc.passes.attention.attention_paths import SWAP, to_merged
from llmc.passes.attention.attention_site import AttentionSite, Heads, appended_keys, find_site
from llmc.passes.attention.extract_attention import ExtractedAttention
from llmc.passes.attention.measure_attention import AttentionFacts, attributes_of, measure
from llmc.passes.graph.graph_query import copy_dtype, free_name, graph_input, reshape, small_initializer, take_place
from llmc.passes.graph_pass import Fact, GraphPass, NearMiss, Order, Tally

WHAT = "attention"


@dataclass(frozen=True)
class RecognizeAttention(GraphPass):
    """Put one ``CachedAttention`` where a layer's arithmetic computes it."""

    order = Order(needs=(Fact.NAMED, Fact.POSITIONS), ends=(Fact.LAYOUTS,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every node that appends keys to a layer's cache; findings are kept for the time of one run."""
        known: dict[str, AttentionFacts | str] = {}
        for node in appended_keys(model):
            tally.expected[WHAT] = tally.expected.get(WHAT, 0) + 1
            try:
                _recognize(model, node, known)
                tally.count(WHAT)
            except NearMiss as miss:
                tally.reject(node, str(miss))
        if tally.fired:
            model.graph.opset_imports.setdefault(DOMAIN, VERSION)
            # What read a layer's keys before its attention now comes after it.
            model.graph.sort()


def _recognize(model: ir.Model, node: ir.Node, known: dict[str, AttentionFacts | str]) -> None:
    mask = graph_input(model, ATTENTION_MASK)
    if mask is None:
        raise NearMiss("the graph has no attention_mask")
    site = find_site(model, node)
    attention = ExtractedAttention(model, site)
    facts = known.get(attention.signature)
    if facts is None:
        try:
            facts = measure(attention)
        except NearMiss as miss:
            facts = str(miss)
        known[attention.signature] = facts
    if isinstance(facts, str):
        raise NearMiss(facts)
    _replace(model.graph, attention, facts, mask)


def _replace(graph: ir.Graph, attention: ExtractedAttention, facts: AttentionFacts, mask: ir.Value) -> None:
    site = attention.site
    query, nodes = _merged(graph, site.query)
    inputs: dict[str, ir.Value | None] = {"query": query, "attention_mask": mask}
    for name, node in (("key", site.key), ("value", site.value)):
        new = node.inputs[1]
        assert new is not None
        inputs[name], more = to_merged(new, True, graph)
        inputs[f"past_{name}"] = node.inputs[0]
        nodes += more
    if facts.slopes:
        inputs["alibi_slopes"] = small_initializer(graph, "alibi_slopes", np.asarray(facts.slopes, np.float32))
    call = cached_attention.make_node(inputs, attributes_of(attention, facts))
    # In the scope of the product; a module that is called twice has two attentions.
    scope = (site.product.name or "").rpartition("/")[0]
    name = f"{scope}/{cached_attention.NAME}" if scope else cached_attention.NAME
    call.name = free_name(name, {node.name for node in graph})
    output, after = _in_layout(graph, call.outputs[0], site)
    anchor = site.output.value.producer()
    assert anchor is not None
    graph.insert_before(anchor, [*nodes, call, *after])
    for old, replacement in (
        (site.output.value, output),
        (site.key.outputs[0], call.outputs[1]),
        (site.value.outputs[0], call.outputs[2]),
    ):
        take_place(old, replacement)
    for dead in (*reversed(attention.part.nodes), site.key, site.value):
        if not any(value.uses() or value.is_graph_output() for value in dead.outputs):
            graph.remove(dead, safe=True)


def _merged(graph: ir.Graph, heads: Heads) -> tuple[ir.Value, list[ir.Node]]:
    if heads.kind == "merged":
        return heads.value, []
    return to_merged(heads.value, heads.kind == "heads_first", graph)


def _in_layout(graph: ir.Graph, output: ir.Value, site: AttentionSite) -> tuple[ir.Value, list[ir.Node]]:
    """The operator's output as the graph goes on with it."""
    old, count, width = site.output.value, site.output.count, site.value_dim
    assert old.shape is not None
    batch = old.shape[0]
    seq = old.shape[2] if site.output.kind == "heads_first" else old.shape[1]
    output.shape = ir.Shape([batch, seq, count * width])
    copy_dtype(old, output)
    if site.output.kind == "merged":
        return output, []
    split = reshape(graph, output, [0, 0, count, width], [batch, seq, count, width])
    if site.output.kind == "heads_second":
        return split.outputs[0], [split]
    swap = ir.node("Transpose", [split.outputs[0]], {"perm": SWAP})
    return swap.outputs[0], [split, swap]
