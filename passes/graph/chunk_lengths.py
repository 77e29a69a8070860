"""Valid tokens of each row, computed from the mask.

In: a graph with ``input_ids`` [batch, seq] and ``attention_mask`` [batch, total], rows right-padded in every chunk.
Out: nodes for the number of valid tokens in this chunk (the last ``seq`` columns of the mask), in all, and before.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import ATTENTION_MASK, CHUNK_LENGTHS, INPUT_IDS, PAST_LENGTHS
from llmc.compiler.base.errors import PassError
from llmc.passes.graph.graph_query import graph_input, small_initializer

TOTAL_LENGTHS = "total_lengths"


def chunk_lengths(model: ir.Model) -> tuple[ir.Value, list[ir.Node]]:
    """[batch] int64, and the nodes to insert; the value and no nodes when an earlier pass made it."""
    graph = model.graph
    if (known := find_value(graph, CHUNK_LENGTHS)) is not None:
        return known, []
    ids, mask = _inputs(model)
    axis = small_initializer(graph, "axis_1", np.asarray([1], np.int64))
    zero = small_initializer(graph, "starts_0", np.asarray([0], np.int64))
    end = small_initializer(graph, "to_the_end", np.asarray([2**62], np.int64))
    seq = ir.node("Shape", [ids], {"start": 1, "end": 2}, name="chunk_lengths/Shape")
    start = ir.node("Sub", [zero, seq.outputs[0]], name="chunk_lengths/Sub")
    columns = ir.node("Slice", [mask, start.outputs[0], end, axis], name="chunk_lengths/Slice")
    lengths = ir.node("ReduceSum", [columns.outputs[0], axis], {"keepdims": 0}, name="chunk_lengths/ReduceSum")
    lengths.outputs[0].name = CHUNK_LENGTHS
    return lengths.outputs[0], [seq, start, columns, lengths]


def total_lengths(model: ir.Model) -> tuple[ir.Value, list[ir.Node]]:
    """Tokens that each row holds after this chunk, [batch] int64."""
    graph = model.graph
    if (known := find_value(graph, TOTAL_LENGTHS)) is not None:
        return known, []
    _, mask = _inputs(model)
    axis = small_initializer(graph, "axis_1", np.asarray([1], np.int64))
    lengths = ir.node("ReduceSum", [mask, axis], {"keepdims": 0}, name="total_lengths/ReduceSum")
    lengths.outputs[0].name = TOTAL_LENGTHS
    return lengths.outputs[0], [lengths]


def past_lengths(model: ir.Model) -> tuple[ir.Value, list[ir.Node]]:
    """Tokens that each row held before this chunk, [batch] int64."""
    graph = model.graph
    if (known := find_value(graph, PAST_LENGTHS)) is not None:
        return known, []
    total, first = total_lengths(model)
    chunk, second = chunk_lengths(model)
    past = ir.node("Sub", [total, chunk], name="past_lengths/Sub")
    past.outputs[0].name = PAST_LENGTHS
    return past.outputs[0], [*first, *second, past]


def find_value(graph: ir.Graph, name: str) -> ir.Value | None:
    """The value called ``name`` that some node of the graph makes."""
    return next((output for node in graph for output in node.outputs if output.name == name), None)


def _inputs(model: ir.Model) -> tuple[ir.Value, ir.Value]:
    ids, mask = graph_input(model, INPUT_IDS), graph_input(model, ATTENTION_MASK)
    if ids is None or mask is None:
        raise PassError("the graph has no input_ids or no attention_mask; export it again")
    return ids, mask
