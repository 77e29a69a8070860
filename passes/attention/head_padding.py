"""Heads made wider by zeros, and cut to their width again.

In: a tensor of heads side by side, [batch, seq, heads x width]. Out: nodes that make [batch, seq, heads x wider], or
back. A head of several parts, as one that rotates by halves, is padded part by part: each part counts as a head.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.passes.graph.graph_query import copy_dtype, insert_before, reshape, small_initializer


def pad_heads(graph: ir.Graph, node: ir.Node, value: ir.Value | None, heads: int, width: int) -> ir.Value:
    """[batch, seq, heads x old] -> [batch, seq, heads x width], zeros at the end of each head; before ``node``."""
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


def cut_heads(graph: ir.Graph, node: ir.Node, heads: int, width: int, kept: int) -> None:
    """Drop the padding from the end of each head of a node's first output, for all that read it."""
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


def widen_cache(value: ir.Value, width: int) -> None:
    """Let the last dimension of a cache [batch, heads, tokens, width] be ``width``."""
    if value.shape is not None:
        value.shape = ir.Shape([*list(value.shape)[:-1], width])
