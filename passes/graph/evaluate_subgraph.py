"""The value of a tensor that depends on nothing but the lengths of a call.

In: a value of a graph, and a past and chunk length. Out: what it is then, or :class:`NotConstant`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.operators.domain import OPSET
from llmc.passes.graph.graph_query import SMALL

BATCH = 2
SAMPLES = ((0, 4), (3, 5), (7, 1))
"""Past and chunk lengths at which a value is computed to see how it depends on them."""


class NotConstant(Exception):
    """The value depends on what the graph's inputs hold, or on an operator that cannot be computed here."""


def evaluate(model: ir.Model, value: ir.Value | None, *, past: int, seq: int) -> npt.NDArray[Any]:
    """Compute ``value`` from the shapes of the graph's inputs alone.

    Raises:
        NotConstant: it depends on more than them.
    """
    if value is None:
        raise NotConstant("there is no value")
    sizes = {"batch": BATCH, "past": past, "sequence": seq, "total": past + seq}
    nodes, shapes = _ancestors(value)
    mapping: dict[ir.Value, ir.Value] = {}
    initializers: list[ir.Value] = []

    def known(name: str, array: npt.NDArray[Any]) -> ir.Value:
        initializers.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return initializers[-1]

    copies: list[ir.Node] = []
    for node in nodes:
        if node in shapes:
            array = np.asarray(_shape(node, sizes), np.int64)
            mapping[node.outputs[0]] = known(f"shape_{len(initializers)}", array)
            continue
        inputs: list[ir.Value | None] = []
        for given in node.inputs:
            if given is not None and given not in mapping:
                assert given.const_value is not None
                mapping[given] = known(f"constant_{len(initializers)}", np.asarray(given.const_value.numpy()))
            inputs.append(mapping[given] if given is not None else None)
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        for index, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
            new.name, new.type = f"value_{len(copies)}_{index}", old.type
            mapping[old] = new
        copies.append(copy)
    if value not in mapping:
        raise NotConstant("it is an input or a weight")
    if not copies:
        content = mapping[value].const_value
        assert content is not None
        return np.asarray(content.numpy())
    return _run(copies, initializers, mapping[value])


def _ancestors(value: ir.Value) -> tuple[list[ir.Node], set[ir.Node]]:
    """The nodes behind ``value`` in graph order, and those among them that only ask for a shape."""
    found: set[ir.Node] = set()
    shapes: set[ir.Node] = set()
    stack: list[ir.Value | None] = [value]
    while stack:
        current = stack.pop()
        if current is None or current.is_initializer():
            if current is not None and (current.const_value is None or current.const_value.size > SMALL):
                raise NotConstant(f"it depends on the weight {current.name}")
            continue
        node = current.producer()
        if node is None:
            raise NotConstant(f"it depends on the input {current.name}")
        if node.domain:
            raise NotConstant(f"it depends on {node.op_type}")
        if node in found:
            continue
        found.add(node)
        if node.op_type == "Shape":
            shapes.add(node)
        else:
            stack.extend(node.inputs)
    graph = next(iter(found)).graph if found else None
    return ([node for node in graph if node in found] if graph is not None else []), shapes


def _shape(node: ir.Node, sizes: dict[str, int]) -> list[int]:
    source = node.inputs[0]
    if source is None or source.shape is None:
        raise NotConstant("a shape is not known")
    result = []
    end = node.attributes.get_int("end", 0) if "end" in node.attributes else None
    for dim in list(source.shape)[node.attributes.get_int("start", 0) : end]:
        text = dim if isinstance(dim, int) else dim.value
        if text is None:
            raise NotConstant("a dimension is not known")
        result.append(text if isinstance(text, int) else _size(text, sizes))
    return result


def _size(text: str, sizes: dict[str, int]) -> int:
    """A symbolic dimension: a name, or a sum of names and numbers."""
    total = 0
    for part in text.replace(" ", "").split("+"):
        if part not in sizes and not part.isdigit():
            raise NotConstant(f"the dimension {text} is not known")
        total += sizes[part] if part in sizes else int(part)
    return total


def _run(nodes: list[ir.Node], initializers: list[ir.Value], output: ir.Value) -> npt.NDArray[Any]:
    from onnx.reference import ReferenceEvaluator

    graph = ir.Graph([], [output], nodes=nodes, initializers=initializers, opset_imports={"": OPSET}, name="lengths")
    try:
        result = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, {})[0]
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, IndexError, AttributeError) as error:
        raise NotConstant(f"it cannot be computed: {error}") from error
    return np.asarray(result)
