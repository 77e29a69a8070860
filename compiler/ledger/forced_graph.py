"""A graph whose nodes are fed with what another graph computed, so that errors do not add up from node to node.

In: a model, and names of values in it. Out: a copy in which every node that reads one of them reads an input of the
graph instead, while what makes it is an output:

    x ─▶ a ─▶ y ─▶ b ─▶ z        x ─▶ a ─▶ y        y.given ─▶ b ─▶ z

What lies between two of these values is then a graph by itself, and so is what a pass made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from llmc.compiler.graph.census import place
from llmc.compiler.graph.write_model import INLINE_BYTES

GIVEN = ".given"
"""Behind the name of a value that is fed."""


def made_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """What nodes make, in the order in which they make it."""
    return (value for node in graph for value in node.outputs if value.name)


def called_values(graph: ir.Graph) -> set[str]:
    """Names of what nodes make of a call: all but what follows from weights alone, as a transposed table."""
    called = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        read = [
            *node.inputs,
            *(value for inner in inner_graphs(node) for each in inner.all_nodes() for value in each.inputs),
        ]
        if any(value in called for value in read):
            called.update(node.outputs)
    return {value.name for value in made_values(graph) if value in called and value.name}


def inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Branches and loops of a node."""
    return (item.as_graph() for item in node.attributes.values() if item.type == ir.AttributeType.GRAPH)


def expose(model: ir.Model) -> ir.Model:
    """A copy whose outputs are all values that nodes make."""
    copy = model.clone()
    outputs = copy.graph.outputs
    outputs.extend(value for value in made_values(copy.graph) if not value.is_graph_output())
    return copy


def force(model: ir.Model, types: Mapping[str, np.dtype[np.generic]]) -> ir.Model:
    """A copy in which the values that ``types`` names are cut: fed to those who read them, and outputs.

    Args:
        model: Left as it is.
        types: Name of a value that a node makes -> its elements' type.
    """
    copy = model.clone()
    for value in [value for value in made_values(copy.graph) if value.name in types]:
        kind = ir.DataType.from_numpy(types[value.name or ""])
        if value.uses():
            given = ir.Value(name=f"{value.name}{GIVEN}", type=ir.TensorType(kind), shape=value.shape)
            for use in list(value.uses()):
                use.node.replace_input_with(use.idx, given)
            copy.graph.inputs.append(given)
        if not value.is_graph_output():
            copy.graph.outputs.append(value)
    return copy


def segment(forced: ir.Model, name: str) -> ir.Model:
    """The part of a forced graph that makes one of its outputs, a model of its own.

    Args:
        forced: What :func:`force` gave; left as it is.
        name: Of the output.
    """
    part = forced.clone()
    graph = part.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name == name]
    RemoveUnusedNodesPass()(part)
    RemoveUnusedFunctionsPass()(part)  # type: ignore[no-untyped-call]
    graph.inputs[:] = [value for value in graph.inputs if value.uses() or value.is_graph_output()]
    return part


def content(graph: ir.Graph) -> tuple[object, ...]:
    """Equal for graphs that compute the same from the same weights, node by node."""
    outputs = tuple(value.name for value in graph.outputs)
    return tuple(value.name for value in graph.inputs), outputs, *(_content(node) for node in graph)


def changed_nodes(before: ir.Model, after: ir.Model) -> list[ir.Node]:
    """Nodes of ``after`` that ``before`` does not hold: other attributes, other inputs or other weights."""
    known = {_content(node) for node in before.graph}
    return [node for node in after.graph if _content(node) not in known]


def _content(node: ir.Node) -> tuple[object, ...]:
    inputs = tuple(None if value is None else _weight(value) or value.name for value in node.inputs)
    attributes = tuple((name, _plain(attribute)) for name, attribute in sorted(node.attributes.items()))
    return node.domain, node.op_type, node.overload, attributes, inputs, tuple(value.name for value in node.outputs)


def _plain(attribute: ir.Attr) -> object:
    if attribute.is_ref() or attribute.value is None:
        return attribute.ref_attr_name
    match attribute.type:
        case ir.AttributeType.TENSOR:
            return attribute.as_tensor().tobytes()
        case ir.AttributeType.GRAPH:
            return content(attribute.as_graph())
        case _:
            return str(attribute.value)


def _weight(value: ir.Value) -> object:
    """What an initializer holds: its bytes, or where they lie; None for another value."""
    tensor = value.const_value
    if not value.is_initializer() or tensor is None:
        return None
    return tensor.tobytes() if tensor.nbytes <= INLINE_BYTES else place(tensor)
