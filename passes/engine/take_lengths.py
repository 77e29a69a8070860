"""Lengths as inputs instead of computed from a mask.

    seqlens_k = ReduceSum(attention_mask) - 1, total_sequence_length = width of the mask, chunk_lengths = …
        →   seqlens_k [batch] int32, total_sequence_length [] int32 (host), chunk_lengths [batch] int64: inputs
    past_lengths = ReduceSum(attention_mask) - chunk_lengths   →   past_lengths [batch] int64: an input

A decode loop on a device keeps each row's length in device memory and adds 1 a step; a mask would be as wide as the
cache and would have to be written and summed again for every token. ``total_sequence_length`` decides on the host
which kernel runs, and stays what it was when the launches were recorded. Where a graph rotates outside attention, its
``position_ids`` are computed from the lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import (
    ATTENTION_MASK,
    CHUNK_LENGTHS,
    INPUT_IDS,
    PAST_LENGTHS,
    POSITION_IDS,
    SEQLENS,
    TOTAL_LENGTH,
)
from llmc.passes.graph.chunk_lengths import find_value
from llmc.passes.graph.graph_query import graph_input, small_initializer
from llmc.passes.graph.node_builder import NodeBuilder
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

INPUTS: dict[str, tuple[ir.DataType, tuple[str, ...]]] = {
    SEQLENS: (ir.DataType.INT32, ("batch",)),
    TOTAL_LENGTH: (ir.DataType.INT32, ()),
    PAST_LENGTHS: (ir.DataType.INT64, ("batch",)),
    CHUNK_LENGTHS: (ir.DataType.INT64, ("batch",)),
}


@dataclass(frozen=True)
class TakeLengths(GraphPass):
    """Turn the values that LowerAttention and LastTokenLogits compute from the mask into inputs."""

    # What is dead would become an input.
    order = Order(needs=(Fact.NOTHING_DEAD,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Replace each that is there; the mask goes when nothing reads it any more."""
        graph = model.graph
        _compute_positions(graph, tally)
        for name, (dtype, shape) in INPUTS.items():
            value = find_value(graph, name)
            if value is None:
                continue
            value.name = f"{name}.computed"
            taken = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(list(shape)))
            graph.inputs.append(taken)
            value.replace_all_uses_with(taken)
            tally.count("lengths")
            # Else what only this one was computed from would become an input that nothing reads.
            _remove_unused(graph)
        if tally.fired:
            tally.state(lengths="inputs")
            _remove_unused(graph)
            mask = graph_input(model, ATTENTION_MASK)
            if mask is not None and (readers := list(mask.uses())):
                for use in readers:
                    tally.reject(use.node, "something else than attention reads the mask, so it stays an input")
            elif mask is not None:
                graph.inputs.remove(mask)
                tally.count("unused inputs")


def _compute_positions(graph: ir.Graph, tally: Tally) -> None:
    """position_ids = past_lengths + [0 … seq - 1], or seqlens_k + [1 - seq … 0]: columns end at the row's length.

    Range takes its limits on the host, so nothing that was computed there is copied to the device: a recorded copy
    would read memory that has been used again.
    """
    positions = next((value for value in graph.inputs if value.name == POSITION_IDS), None)
    past = find_value(graph, PAST_LENGTHS)
    lengths = find_value(graph, SEQLENS) if past is None else past
    ids = next(value for value in graph.inputs if value.name == INPUT_IDS)
    if positions is None or lengths is None:
        return
    make = NodeBuilder(graph, "position_ids")
    one = small_initializer(graph, "one", np.asarray(1, np.int64))
    axis = small_initializer(graph, "axis_1", np.asarray([1], np.int64))
    width = make.op("Squeeze", make.op("Shape", ids, start=1, end=2))
    if past is None:
        columns = make.op("Range", make.op("Sub", one, width), one, one)
    else:
        columns = make.op("Range", small_initializer(graph, "zero", np.asarray(0, np.int64)), width, one)
    last = make.op("Unsqueeze", make.op("Cast", lengths, to=int(ir.DataType.INT64)), axis)
    made = make.op("Add", last, columns)
    made.dtype, made.shape = ir.DataType.INT64, positions.shape
    maker = lengths.producer()
    assert maker is not None
    graph.insert_after(maker, make.nodes)
    positions.replace_all_uses_with(made)
    graph.inputs.remove(positions)
    graph.sort()
    tally.count("positions")


def _remove_unused(graph: ir.Graph) -> None:
    """Take out the nodes whose outputs nobody reads, from the end on."""
    for node in reversed(list(graph)):
        if not any(list(output.uses()) or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
