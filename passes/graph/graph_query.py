"""Questions that passes ask of a graph, and the few edits that they share.

In: values and nodes. Out: constants, producers, consumers; replaced nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

SMALL = 4096
"""Elements up to which a constant is looked at; weights are larger and are never read by a question."""


def producer(value: ir.Value | None, op_type: str | None = None, domain: str = "") -> ir.Node | None:
    """The node that makes ``value``, when it is of the given type."""
    node = value.producer() if value is not None else None
    if node is None or (op_type is not None and (node.op_type != op_type or node.domain != domain)):
        return None
    return node


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The value's content when it is a small constant, else None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    known = tensor is not None and tensor.size <= SMALL and tensor.dtype != ir.DataType.STRING
    return np.asarray(tensor.numpy()) if tensor is not None and known else None


def both_ways(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a commutative operator, in either order."""
    first, second = node.inputs
    return [(first, second), (second, first)]


def own_sigmoid(node: ir.Node) -> ir.Node | None:
    """The Sigmoid of ``x * sigmoid(x)``, when a node is that."""
    if node.op_type != "Mul" or node.domain:
        return None
    sigmoids = [(producer(value, "Sigmoid"), x) for value, x in both_ways(node)]
    return next((sigmoid for sigmoid, x in sigmoids if sigmoid is not None and sigmoid.inputs[0] is x), None)


def is_weight(value: ir.Value | None) -> bool:
    """Whether the value is an initializer (of whatever size)."""
    return value is not None and value.is_initializer() and value.const_value is not None


def integers(value: ir.Value | None) -> list[int] | None:
    """A small constant as a flat list of integers."""
    array = constant(value)
    return None if array is None else [int(x) for x in array.reshape(-1)]


def dims(value: ir.Value | None) -> list[int | str | None] | None:
    """The value's dimensions: integers, symbolic names, or None for an anonymous one."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def copy_dtype(source: ir.Value, target: ir.Value) -> None:
    """Give ``target`` the element type of ``source``, where that is known."""
    if source.dtype is not None:
        target.dtype = source.dtype


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that uses ``value``, when there is just one use and the value is no graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def insert_before(anchor: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Put nodes into the anchor's graph, before it."""
    graph = anchor.graph
    assert graph is not None
    graph.insert_before(anchor, list(nodes))


def replace_node(old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
    """Put ``new`` where ``old`` was; ``outputs`` take the place (and name, type, shape) of the old ones."""
    graph = old.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(graph, old, [old], list(new), list(old.outputs), list(outputs))


def take_place(old: ir.Value, new: ir.Value) -> None:
    """``new`` is used, called and typed as ``old`` was."""
    new.shape, new.type, name = old.shape, old.type, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{name}.before", name


def free_name(name: str, taken: Container[str | None]) -> str:
    """The name, with the first number behind it that makes it free, where it is taken."""
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
    return next(free for free in names if free not in taken)


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register an initializer under a free name that begins with ``name``."""
    shape, free = ir.Shape([int(d) for d in tensor.shape.numpy()]), free_name(name, graph.initializers)
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def small_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Register a small constant; an equal one of that name is used again."""
    known = graph.initializers.get(name)
    if known is not None and known.const_value is not None:
        content = known.const_value.numpy()
        if content.dtype == array.dtype and np.array_equal(content, array):
            return known
    return add_initializer(graph, name, ir.tensor(array))


def reshape(
    graph: ir.Graph,
    value: ir.Value,
    target: Sequence[int],
    shape: Iterable[int | ir.SymbolicDim],
    name: str | None = None,
) -> ir.Node:
    """A Reshape to a constant target, which makes ``shape``; values reshaped alike share the target."""
    numbers = small_initializer(graph, "shape_" + "_".join(map(str, target)), np.asarray(target, np.int64))
    node = ir.node("Reshape", [value, numbers], name=name)
    copy_dtype(value, node.outputs[0])
    node.outputs[0].shape = ir.Shape(list(shape))
    return node


def graph_input(model: ir.Model, name: str) -> ir.Value | None:
    """The graph input called ``name``."""
    return next((value for value in model.graph.inputs if value.name == name), None)
