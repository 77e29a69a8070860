"""Makes the shape arithmetic of a traced graph constant, and removes what moves nothing.

    Reshape(x, Concat(batch, seq, 9, 64))         →  Reshape(x, [0, 0, 9, 64])
    Transpose(Transpose(x)), Reshape(Reshape(x))  →  x, or one of them
    Expand, Reshape to its own shape, Cast to its own type, Slice of everything, Identity  →  x

Symbolic dimensions are compared by name: the trace gives equal names to sizes that are always equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.passes.graph.graph_query import dims, integers, producer, small_initializer
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

Dims = list[int | str | None]
FARTHEST = 2**31 - 1
"""What exporters write for "to the end"; no axis is longer."""


@dataclass(frozen=True)
class SimplifyShapes(GraphPass):
    """One sweep; the pipeline runs it where earlier passes leave something to simplify."""

    order = Order(gives=(Fact.LAYOUTS,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every node once, in order."""
        for node in list(model.graph):
            if node.domain:
                continue
            if _moves_nothing(node):
                _bypass(node, tally)
            elif node.op_type == "Reshape":
                _simplify_reshape(node, model.graph, tally)
            elif node.op_type == "Transpose":
                _cancel_transpose(node, tally)


def _moves_nothing(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return True
    before, after = dims(node.inputs[0]) if node.inputs else None, dims(node.outputs[0])
    if node.op_type == "Cast":
        source = node.inputs[0]
        return (
            source is not None and source.dtype is not None and int(source.dtype) == node.attributes.get_int("to", 0)
        )
    if node.op_type == "Slice":
        return _takes_all(node)
    if node.op_type in {"Reshape", "Expand"} and before is not None and after is not None:
        # One anonymous or computed dimension is enough to make two shapes differ at run time.
        return before == after and all(d is not None for d in before)
    return False


def _takes_all(node: ir.Node) -> bool:
    """Whether a Slice goes from the first element to the last of every axis (a model's ``x[:, :]``)."""
    starts, ends = (integers(value) for value in node.inputs[1:3])
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    if starts is None or ends is None or steps is None:
        return False
    return not any(starts) and min(ends) >= FARTHEST and all(step == 1 for step in steps)


def _bypass(node: ir.Node, tally: Tally) -> None:
    source, result, graph = node.inputs[0], node.outputs[0], node.graph
    if source is None or graph is None or result.is_graph_output():
        return
    if source.shape is None:
        source.shape = result.shape
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    tally.count("removed")


def _simplify_reshape(node: ir.Node, graph: ir.Graph, tally: Tally) -> None:
    inner = producer(node.inputs[0], "Reshape")
    source = inner.inputs[0] if inner is not None else node.inputs[0]
    before, after = dims(source), dims(node.outputs[0])
    target = constant_target(before, after) if before is not None and after is not None else None
    if inner is not None and target is not None:
        # Only with a target of its own: a 0 in the old one copies a dimension of what the inner Reshape made.
        node.replace_input_with(0, source)
        tally.count("merged reshapes")
    if target is None or integers(node.inputs[1]) == target:
        if _moves_nothing(node):
            _bypass(node, tally)
        return
    name = "shape_" + "_".join(str(d).replace("-", "m") for d in target)
    node.replace_input_with(1, small_initializer(graph, name, np.asarray(target, np.int64)))
    node.attributes.pop("allowzero", None)
    tally.count("constant shapes")
    if _moves_nothing(node):
        _bypass(node, tally)


def constant_target(before: Dims, after: Dims) -> list[int] | None:
    """``after`` as a Reshape target: 0 copies a dimension of ``before``, one -1 is computed; None when impossible."""
    target: list[int] = []
    for index, dim in enumerate(after):
        if isinstance(dim, int):
            target.append(dim)
        elif dim is not None and index < len(before) and before[index] == dim:
            target.append(0)
        elif -1 not in target:
            target.append(-1)
        else:
            return None
    return target if 0 not in [d for d in after if isinstance(d, int)] else None


def _cancel_transpose(node: ir.Node, tally: Tally) -> None:
    inner = producer(node.inputs[0], "Transpose")
    if inner is None:
        return
    first = [int(x) for x in inner.attributes.get_ints("perm", [])]
    second = [int(x) for x in node.attributes.get_ints("perm", [])]
    if not first or len(first) != len(second):
        return
    both = [first[i] for i in second]
    if both == sorted(both):
        result, source = node.outputs[0], inner.inputs[0]
        if source is None or result.is_graph_output() or node.graph is None:
            return
        result.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)
    else:
        node.replace_input_with(0, inner.inputs[0])
        node.attributes["perm"] = ir.AttrInt64s("perm", both)
    tally.count("merged transposes")
