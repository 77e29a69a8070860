"""The residual stream of a decoder: what each layer adds to, and the norms that read it.

In: a graph. Out: its nodes, so that they can be computed in a wider type than the layers.

    h = Add(h, attention)   h = Add(h, mlp)   …   RMSNormalization(h), LayerNormalization(h)

A model that was trained in bfloat16 lets single channels of the stream grow without bound, since norms take the size
away again: Gemma 3 270M reaches 104,000 on its first token, and float16 ends at 65,504.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.passes.graph.graph_query import constant, is_weight, producer

NORMS = frozenset({"RMSNormalization", "LayerNormalization"})


def residual_stream(graph: ir.Graph) -> set[ir.Node]:
    """The Adds of activations that end in a norm, by way of further Adds or at once, and the norms that read them."""
    found: set[ir.Node] = set()
    for norm in graph:
        if norm.op_type in NORMS and not norm.domain and (last := _sum(norm.inputs[0])) is not None:
            found |= {norm, last}
    waiting = [node for node in found if node.op_type == "Add"]
    while waiting:
        for value in waiting.pop().inputs:
            if (node := _sum(value)) is not None and node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _sum(value: ir.Value | None) -> ir.Node | None:
    """The Add that makes ``value`` of two activations: neither a bias nor another constant is one."""
    node = producer(value, "Add")
    fixed = node is None or any(is_weight(read) or constant(read) is not None for read in node.inputs)
    return None if fixed else node
