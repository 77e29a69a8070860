"""Arithmetic on positions by row.

    Reshape(f(Range(past, past + seq) + c), [1, 1, seq, 1])   →   Reshape(f(position_ids + c), [batch, 1, seq, 1])

The companion of :mod:`.use_position_ids` for models that compute with positions which they count themselves, as a
temperature of queries that grows with the text: the same for every row, it is wrong for padded ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import POSITION_IDS
from llmc.passes.graph.graph_query import constant, copy_dtype, dims, graph_input, insert_before, small_initializer
from llmc.passes.graph.subgraph import slot_offset
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Reciprocal", "Floor", "Ceil", "Min", "Max", "Clip"}
FUNCTIONS = {"Log", "Exp", "Sqrt", "Relu", "Sin", "Cos", "Cast", "Identity"}
ELEMENTWISE = frozenset(ARITHMETIC | FUNCTIONS)


@dataclass(frozen=True)
class PositionsByRow(GraphPass):
    """Let what is computed from a chunk's slots be computed from ``position_ids``."""

    order = Order(needs=(Fact.NAMED,), gives=(Fact.POSITIONS,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every value that spreads one number per token over rows."""
        positions = graph_input(model, POSITION_IDS)
        if positions is None:
            return
        for node in list(model.graph):
            if node.domain or node.op_type not in {"Reshape", "Unsqueeze"} or not _is_row(node.outputs[0]):
                continue
            chain = _chain(node.inputs[0])
            if chain is not None:
                _replace(model.graph, node, positions, *chain)
                tally.count("positions")


def _is_row(value: ir.Value) -> bool:
    """Whether a value is a float for each token, [1, …, sequence, …, 1]; a mask counts slots, in integers."""
    shape = dims(value)
    if value.dtype not in FLOATS or shape is None or len(shape) < 3 or shape[0] != 1:
        return False
    if sorted(map(str, shape)) != sorted(["sequence", *["1"] * (len(shape) - 1)]):
        return False
    return all(use.node.op_type in ELEMENTWISE | {"Expand"} for use in value.uses())


def _chain(value: ir.Value | None) -> tuple[list[tuple[ir.Node, int]], int] | None:
    """The element-wise nodes from the slots of the chunk to ``value``, and what the slots are offset by.

    Returns:
        Nodes in order, each with the input that the chain runs through; None when there is no such chain.
    """
    nodes: list[tuple[ir.Node, int]] = []
    while value is not None:
        if (offset := _offset(value)) is not None:
            return nodes[::-1], offset
        node = value.producer()
        if node is None or node.domain or node.op_type not in ELEMENTWISE:
            return None
        open_inputs = [i for i, given in enumerate(node.inputs) if given is not None and not _is_scalar(given)]
        if len(open_inputs) != 1:
            return None
        nodes.append((node, open_inputs[0]))
        value = node.inputs[open_inputs[0]]
    return None


def _is_scalar(value: ir.Value) -> bool:
    content = constant(value)
    return content is not None and content.size == 1


def _offset(value: ir.Value) -> int | None:
    """What is added to a token's slot to give ``value``; None when it is something else than slots."""
    return slot_offset([value], lambda results: results[0]) if dims(value) == ["sequence"] else None


def _replace(
    graph: ir.Graph, node: ir.Node, positions: ir.Value, chain: list[tuple[ir.Node, int]], offset: int
) -> None:
    assert positions.shape is not None
    made: list[ir.Node] = []
    first = chain[0][0].inputs[chain[0][1]] if chain else node.inputs[0]
    assert first is not None
    value = positions

    def add(new: ir.Node, dtype_of: ir.Value) -> ir.Value:
        made.append(new)
        copy_dtype(dtype_of, new.outputs[0])
        new.outputs[0].shape = positions.shape
        return new.outputs[0]

    if offset:
        amount = small_initializer(graph, f"position_offset_{offset}", np.asarray(offset, np.int64))
        value = add(ir.node("Add", [value, amount]), positions)
    if first.dtype is not None and first.dtype != ir.DataType.INT64:
        value = add(ir.node("Cast", [value], {"to": int(first.dtype)}), first)
    for old, index in chain:
        inputs = list(old.inputs)
        inputs[index] = value
        copy = ir.Node("", old.op_type, inputs, old.attributes.values(), num_outputs=1)
        value = add(copy, old.outputs[0])
    shape = dims(node.outputs[0]) or []
    sizes = [0, *(-1 if dim == "sequence" else 1 for dim in shape[1:])]
    name = "shape_" + "_".join(str(size).replace("-", "m") for size in sizes)
    target = small_initializer(graph, name, np.asarray(sizes, np.int64))
    value = add(ir.node("Reshape", [value, target]), node.outputs[0])
    value.shape = ir.Shape([positions.shape[0], *shape[1:]])
    for number, new in enumerate(made):
        new.name = f"{node.name}/by_row.{number}"
    insert_before(node, made)
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)
    _state_rows(value, positions.shape[0])


def _state_rows(value: ir.Value, batch: int | ir.SymbolicDim) -> None:
    """What is computed of ``value`` element by element has a row for each of the batch, where it had one for all."""
    for use in value.uses():
        output = use.node.outputs[0]
        shape = dims(output)
        if use.node.op_type in ELEMENTWISE | {"Expand"} and shape is not None and shape[:1] == [1]:
            output.shape = ir.Shape([batch, *shape[1:]])
            _state_rows(output, batch)
