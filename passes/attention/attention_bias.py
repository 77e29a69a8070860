"""What is added to the scores of an attention whose rows start at slot 0 of the cache.

In: the lengths that GroupQueryAttention takes. Out: [batch or 1, heads or 1, seq, total] float, by absolute position.

Query ``s`` of row ``b`` is at position ``total_b - valid_b + s``, and slot ``j`` holds the token at position ``j``.
A bias is made once and used by every layer that asks for the same. It has a row for each query, so a long prompt that
is not prefilled in chunks makes a large one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import SEQLENS, TOTAL_LENGTH
from llmc.passes.graph.chunk_lengths import find_value
from llmc.passes.graph.node_builder import NodeBuilder

LOWEST = float(np.finfo(np.float16).min)
"""Far below every score, and a number in every float type."""


def chunk_bias(graph: ir.Graph, before: ir.Node, size: int, lengths: Mapping[str, ir.Value]) -> ir.Value:
    """0 where query and key lie in the same chunk of ``size`` positions, else :data:`LOWEST`.

    Args:
        graph: Gets the nodes.
        before: An attention that uses it.
        size: Tokens of a chunk.
        lengths: ``seqlens_k``, ``total_sequence_length`` and ``query_seqlens`` as values.
    """
    name = f"chunk_bias_{size}"
    if (known := find_value(graph, name)) is not None:
        return known
    make = NodeBuilder(graph, name)
    queries, keys = _positions(make, before, lengths)
    chunk = make.constant("size", np.asarray(size, np.int64))
    same = make.op("Equal", make.op("Div", queries, chunk), make.op("Div", keys, chunk))
    kept, dropped = make.constant("kept", np.asarray(0, np.float32)), make.constant("dropped", np.float32(LOWEST))
    bias = make.op("Where", same, kept, dropped)
    bias = make.op("Unsqueeze", bias, make.constant("axis_1", np.asarray([1], np.int64)))
    bias = make.in_type_of(before.inputs[0], bias)
    bias.name = name
    graph.insert_before(before, make.nodes)
    return bias


def alibi_bias(graph: ir.Graph, before: ir.Node, slopes: ir.Value, lengths: Mapping[str, ir.Value]) -> ir.Value:
    """``slope x (j - i)`` for slot ``j`` and the longest row's query ``i``, [1, heads, seq, total].

    In a shorter row it is off by a constant, which a softmax without sinks does not see; so all rows share it.
    Distances and not slots, since they are small where weights are large: at 2,000 tokens the output's error is 1e-6,
    but 5e-5 with slots, or in a row that is 1,900 tokens shorter than the longest.

    Args:
        graph: Gets the nodes.
        before: An attention that uses it.
        slopes: [heads] float32.
        lengths: ``total_sequence_length`` as a value.
    """
    name = f"alibi_bias_of_{slopes.name}"
    if (known := find_value(graph, name)) is not None:
        return known
    make = NodeBuilder(graph, name)
    zero, one = make.constant("zero", np.asarray(0, np.int64)), make.constant("one", np.asarray(1, np.int64))
    seq = make.op("Squeeze", make.op("Shape", before.inputs[0], start=1, end=2))
    total = make.op("Cast", lengths[TOTAL_LENGTH], to=int(ir.DataType.INT64))
    queries = make.op("Range", make.op("Sub", total, seq), total, one)
    queries = make.op("Unsqueeze", queries, make.constant("axis_1", np.asarray([1], np.int64)))
    distance = make.op("Cast", make.op("Sub", make.op("Range", zero, total, one), queries), to=int(ir.DataType.FLOAT))
    by_head = make.op("Reshape", slopes, make.constant("by_head", np.asarray([1, -1, 1, 1], np.int64)))
    bias = make.in_type_of(before.inputs[0], make.op("Mul", by_head, distance))
    bias.name = name
    graph.insert_before(before, make.nodes)
    return bias


def _positions(make: NodeBuilder, before: ir.Node, lengths: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
    """Positions of the queries [batch, seq, 1] and of the slots [1, 1, total], int64."""
    zero, one = make.constant("zero", np.asarray(0, np.int64)), make.constant("one", np.asarray(1, np.int64))
    int64 = int(ir.DataType.INT64)
    last = make.op("Cast", lengths[SEQLENS], to=int64)
    valid = make.op("Cast", lengths["query_seqlens"], to=int64)
    first = make.op("Sub", make.op("Add", last, one), valid)
    seq = make.op("Squeeze", make.op("Shape", before.inputs[0], start=1, end=2))
    total = make.op("Cast", lengths[TOTAL_LENGTH], to=int64)
    offsets = make.op("Range", zero, seq, one)
    queries = make.op("Add", make.op("Unsqueeze", first, make.constant("axis", np.asarray([1], np.int64))), offsets)
    queries = make.op("Unsqueeze", queries, make.constant("axis_2", np.asarray([2], np.int64)))
    slots = make.op("Range", zero, total, one)
    keys = make.op("Unsqueeze", slots, make.constant("axes_0_1", np.asarray([0, 1], np.int64)))
    return queries, keys
