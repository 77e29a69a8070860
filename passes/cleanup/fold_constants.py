"""Computes what does not depend on the inputs; weights are changed without being read.

    Transpose(weight), Cast(weight), Add(norm weight, 1)  →  a lazy initializer
    small constants through any operator                  →  a small initializer

A transposed weight is folded only where nothing else uses the weight: an embedding table that is tied to the output
projection stays one tensor, and its Transpose stays a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript.optimizer._constant_folding import FoldConstantsPass

from llmc.compiler.graph.lazy_weight import LazyWeight, MappedWeight, as_weight, cast_weight, transposed_weight
from llmc.passes.graph.graph_query import add_initializer, constant, is_weight
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

LIMIT = 1024
"""Largest constant, in elements, that is computed while compiling."""


@dataclass(frozen=True)
class FoldConstants(GraphPass):
    """Fold small constants, and the arithmetic that models do on their weights."""

    order = Order(gives=(Fact.FOLDED,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Weights first: what is lazy is no constant to the folder."""
        _lift(model, tally)
        for node in list(model.graph):
            if (folded := _fold_weight(node)) is not None:
                _replace(model.graph, node, folded)
                tally.count("weights")
        folder = FoldConstantsPass(
            shape_inference=False, input_size_limit=LIMIT, output_size_limit=LIMIT, should_fold=_is_small
        )
        before = model.graph.num_nodes()
        if folder(model).modified:
            tally.count("constants", max(1, before - model.graph.num_nodes()))
        _lift(model, tally)


def _lift(model: ir.Model, tally: Tally) -> None:
    before = model.graph.num_nodes()
    if LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).modified:
        tally.count("lifted", max(1, before - model.graph.num_nodes()))


def _is_small(node: ir.Node) -> bool | None:
    """Let the folder decide, except where it would read a weight."""
    return False if any(_is_lazy(value) for value in node.inputs) else None


def _fold_weight(node: ir.Node) -> LazyWeight | None:
    if node.domain or not node.inputs or node.outputs[0].is_graph_output():
        return None
    value = node.inputs[0]
    if node.op_type == "Mul" and not _is_lazy(value) and len(node.inputs) == 2:
        value = node.inputs[1]
    if value is None or not _is_lazy(value):
        return None
    tensor = value.const_value
    assert tensor is not None
    if node.op_type == "Transpose" and len(tensor.shape) == 2 and _perm(node) == [1, 0]:
        return transposed_weight(tensor) if len(list(value.uses())) == 1 else None
    if node.op_type == "Cast":
        return cast_weight(tensor, ir.DataType(node.attributes.get_int("to", 0)))
    if node.op_type in {"Add", "Mul"} and len(tensor.shape) == 1:
        return _fold_scalar(node, value)
    return None


def _is_lazy(value: ir.Value | None) -> bool:
    """Whether a value is a weight that is still in a file."""
    return value is not None and is_weight(value) and isinstance(value.const_value, LazyWeight | ir.ExternalTensor)


def _perm(node: ir.Node) -> list[int]:
    return [int(x) for x in node.attributes.get_ints("perm", [])]


def _fold_scalar(node: ir.Node, value: ir.Value) -> LazyWeight | None:
    """``weight + c`` and ``weight * c`` of a vector, as the norms of some models have it."""
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    scalar = constant(other)
    if scalar is None or scalar.size != 1 or scalar.ndim > 1 or value.const_value is None:
        return None
    base, operand, add = as_weight(value.const_value), scalar.reshape(()), node.op_type == "Add"

    def compute(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        wide = rows.astype(np.float32)
        return wide + operand.astype(np.float32) if add else wide * operand.astype(np.float32)

    key = (node.op_type, float(operand))
    return MappedWeight(base, base.stored_shape, base.dtype, compute, key)


def _replace(graph: ir.Graph, node: ir.Node, tensor: LazyWeight) -> None:
    source = next((v.name for v in node.inputs if v is not None and v.name and _is_lazy(v)), "weight")
    value = add_initializer(graph, f"{source}", tensor)
    node.outputs[0].replace_all_uses_with(value)
    graph.remove(node, safe=True)
