"""Gate and up projections of a gated feed-forward block into one.

    gate = MatMul(x, W_gate)                    gate, up = Split(MatMul(x, [W_gate W_up]))
    up   = MatMul(x, W_up)              →       y = act(gate) * up
    y    = act(gate) * up
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.passes.graph_pass import GraphPass, NearMiss, Tally
from llmc.passes.graph_query import producer, small_initializer
from llmc.passes.linear import Linear, linear_of, stack_linears

ACTIVATIONS = {"Gelu", "Relu", "Sigmoid", "QuickGelu", "Swish", "HardSwish", "Tanh"}


@dataclass(frozen=True)
class PackGateUp(GraphPass):
    """Pack the two projections of each gated feed-forward block."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every product of an activated and a plain projection."""
        for node in list(model.graph):
            if node.op_type != "Mul" or node.domain:
                continue
            pair = gate_and_up(node)
            if pair is None:
                continue
            try:
                _pack(model.graph, node, *pair)
                tally.count("gate_up")
            except NearMiss as miss:
                tally.reject(node, str(miss))


def gate_and_up(node: ir.Node) -> tuple[Linear, Linear] | None:
    """The two linear layers that a product joins, gate first; None where it joins something else."""
    for index in (0, 1):
        gate, up = _activated(node.inputs[index]), linear_of(node.inputs[1 - index])
        if gate is not None and up is not None and gate.output is not up.output:
            return gate, up
    return None


def _activated(value: ir.Value | None) -> Linear | None:
    """The linear layer under an activation, which may be ``x * sigmoid(x)``."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type in ACTIVATIONS:
        return linear_of(node.inputs[0])
    if node.op_type == "Mul":
        for index in (0, 1):
            sigmoid = producer(node.inputs[index], "Sigmoid")
            if sigmoid is not None and sigmoid.inputs[0] is node.inputs[1 - index]:
                return linear_of(sigmoid.inputs[0])
    return None


def _pack(graph: ir.Graph, node: ir.Node, gate: Linear, up: Linear) -> None:
    widths = [linear.weight.shape[1] if linear.weight.shape is not None else None for linear in (gate, up)]
    if not all(isinstance(width, int) for width in widths):
        raise NearMiss("its projections have a symbolic width")
    first = _earlier(graph, gate.output.producer(), up.output.producer())
    packed = stack_linears(graph, first, [gate, up], "gate_up_proj")
    name = "split_" + "_".join(str(w) for w in widths)
    sizes = small_initializer(graph, name, np.asarray(widths, np.int64))
    split = ir.node("Split", [packed, sizes], {"axis": -1}, num_outputs=2)
    made = packed.producer()
    assert made is not None
    split.name = (made.name or "gate_up").rsplit("/", 1)[0] + "/Split"
    graph.insert_after(made, split)
    for old, new in zip((gate.output, up.output), split.outputs, strict=True):
        new.dtype, new.shape = old.dtype, old.shape
        old.replace_all_uses_with(new)


def _earlier(graph: ir.Graph, first: ir.Node | None, second: ir.Node | None) -> ir.Node:
    for node in graph:
        if node is first or node is second:
            return node
    raise NearMiss("its projections are not in the graph")
