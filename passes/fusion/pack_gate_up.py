"""Gate and up projections of a gated feed-forward block into one.

gate = MatMul(x, W_gate)                    gate, up = Split(MatMul(x, [W_gate W_up]))
up   = MatMul(x, W_up)              →       y = act(gate) * up
y    = act(gate) * up
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.passes.graph.graph_query import (
    both_ways,
    constant,
    copy_dtype,
    dims,
    is_weight,
    own_sigmoid,
    producer,
    small_initializer,
)
from llmc.passes.graph.linear import Linear, linear_of, stack_linears
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

ACTIVATIONS = {"Gelu", "Relu", "Sigmoid", "QuickGelu", "Swish", "HardSwish", "Tanh"}


@dataclass(frozen=True)
class PackGateUp(FusionPass):
    """Pack the two projections of each gated feed-forward block."""

    what: ClassVar[str] = "gate_up"
    order = Order(needs=(Fact.WEIGHTS,), ends=(Fact.NOTHING_DEAD,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every product of an activation and something else that is no constant, unless it is split already.

        Two projections that meet in a product after something was done to either belong here as well.
        """
        return [node for node in model.graph if _is_gated(node)]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Pack one block."""
        gate, up = gate_and_up(node)
        _pack(model.graph, gate, up)


def _is_gated(node: ir.Node) -> bool:
    if node.op_type != "Mul" or node.domain:
        return False
    for value, other in both_ways(node):
        source = activation_input(value)
        if source is None or other is None or other is source or is_weight(other):
            continue
        return producer(source, "Split") is None
    if all(linear_of(value) is not None for value in node.inputs):
        return False
    projections = [_projection_behind(value) for value in node.inputs]
    return None not in projections and projections[0] is not projections[1]


def _projection_behind(value: ir.Value | None) -> ir.Node | None:
    """The matrix product with a weight that ``value`` is computed from, element by element."""
    node = value.producer() if value is not None else None
    while node is not None and not node.domain and node.op_type != "MatMul":
        varying = [v for v in node.inputs if v is not None and not is_weight(v) and constant(v) is None]
        if len(varying) != 1 or dims(varying[0]) is None or dims(varying[0]) != dims(value):
            return None
        node = varying[0].producer()
    return node if node is not None and node.op_type == "MatMul" and is_weight(node.inputs[1]) else None


def gate_and_up(node: ir.Node) -> tuple[Linear, Linear]:
    """The two linear layers that a product joins, gate first.

    Raises:
        NearMiss: one side is no linear layer.
    """
    sides = [(source, other) for value, other in both_ways(node) if (source := activation_input(value)) is not None]
    if not sides:
        made_by = [maker.op_type for value in node.inputs if value is not None and (maker := value.producer())]
        raise NearMiss(f"neither {' nor '.join(made_by)} is an activation that the pass knows")
    gate, up = (linear_of(value) for value in sides[0])
    if gate is None:
        raise NearMiss("what is activated is no projection with a constant weight")
    if up is None:
        raise NearMiss("what is multiplied with the activation is no projection with a constant weight")
    return gate, up


def activation_input(value: ir.Value | None) -> ir.Value | None:
    """What an activation is applied to, when ``value`` is one; ``x * sigmoid(x)`` counts as one."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type in ACTIVATIONS:
        return node.inputs[0]
    sigmoid = own_sigmoid(node)
    return sigmoid.inputs[0] if sigmoid is not None else None


def _pack(graph: ir.Graph, gate: Linear, up: Linear) -> None:
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
        new.shape = old.shape
        copy_dtype(old, new)
        old.replace_all_uses_with(new)


def _earlier(graph: ir.Graph, first: ir.Node | None, second: ir.Node | None) -> ir.Node:
    for node in graph:
        if node is first or node is second:
            return node
    raise NearMiss("its projections are not in the graph")
