"""Faults of one percent, and portable graphs to plant them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import MappedWeight, as_weight
from llmc.passes.graph_pass import GraphPass, Tally

FACTOR = 1.01
Change = Callable[[ir.Model], None]


@dataclass(frozen=True)
class Planted(GraphPass):
    """Changes what it is told to, and says that it costs nothing."""

    change: Change

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        self.change(model)
        tally.count("planted")


def node_of(model: ir.Model, name: str) -> ir.Node:
    """The node of that name."""
    return next(node for node in model.graph if node.name == name)


def scaled_weight(node: str, index: int = 1) -> Change:
    """An input of a node, times the factor; it is read when it is written."""

    def change(model: ir.Model) -> None:
        value = node_of(model, node).inputs[index]
        assert value is not None
        assert value.const_value is not None
        value.const_value = times(value.const_value)

    return change


def times(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A weight times the factor."""
    weight = as_weight(tensor)
    return MappedWeight(
        weight,
        weight.stored_shape,
        weight.dtype,
        lambda rows: rows * np.float32(FACTOR),
        ("planted",),
        transposed=weight.transposed,
    )


def attribute(node: str, name: str, factor: float = FACTOR) -> Change:
    """A float attribute of a node, times a factor."""

    def change(model: ir.Model) -> None:
        attributes = node_of(model, node).attributes
        attributes[name] = ir.AttrFloat32(name, attributes.get_float(name, 0.0) * factor)

    return change
