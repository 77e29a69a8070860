"""A part of a graph as a graph of its own: cut out, copied, computed.

In: values, and the values at which they are cut off from the rest. Out: :class:`Subgraph`, a copy of it that runs
alone, and what the values are.

    inputs, constants, lengths ─▶ nodes ─▶ outputs

A ``Shape`` whose dimensions have known names is a length: its result follows from the lengths of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.dimensions import size_of
from llmc.compiler.graph.operators.domain import OPSET
from llmc.passes.graph.graph_query import SMALL
from llmc.passes.graph_pass import NearMiss

Array = npt.NDArray[Any]
BATCH = 2
SAMPLES = ((0, 4), (3, 5), (7, 1))
"""Past and chunk lengths at which a value is computed to see how it depends on them."""


@dataclass(frozen=True)
class Subgraph:
    """Nodes between some values and what they are computed from.

    Attributes:
        outputs: The values.
        nodes: In graph order, lengths included.
        lengths: The Shape nodes that the names of dimensions answer; what these ask is no part of it.
        constants: The initializers that the nodes read.
    """

    outputs: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]
    lengths: tuple[ir.Node, ...]
    constants: tuple[ir.Value, ...]

    def copy(
        self,
        inputs: Mapping[ir.Value, ir.Value],
        constants: Mapping[ir.Value, Array],
        half: ir.DataType | None = None,
    ) -> ir.Graph:
        """A graph of its own.

        Args:
            inputs: Value -> the graph's input that stands for it.
            constants: Value -> its content. Every value that the nodes read and do not make is in one of the two.
            half: A type of floats that becomes float32; the constants are so already.
        """
        copies = dict(inputs)
        for index, (value, array) in enumerate(constants.items()):
            name = f"constant_{index}"
            copies[value] = ir.val(name, const_value=ir.tensor(array, name=name))
        nodes = [
            _copy_node(node, f"value_{index}", copies, half)
            for index, node in enumerate(self.nodes)
            if node.outputs[0] not in copies
        ]
        outputs = [copies[value] for value in self.outputs]
        for value, copy in zip(self.outputs, outputs, strict=True):
            copy.type = ir.TensorType(ir.DataType.FLOAT) if value.dtype in {half, None} else value.type
        weights = [copies[value] for value in constants]
        imports = {"": OPSET}
        return ir.Graph(
            [*inputs.values()], outputs, nodes=nodes, initializers=weights, opset_imports=imports, name="part"
        )


def cut(
    outputs: Sequence[ir.Value],
    inputs: Collection[ir.Value] = (),
    *,
    largest: int | None = 8 * SMALL,
    by_length: bool = True,
    subject: str = "it depends",
) -> Subgraph:
    """Follow ``outputs`` up to ``inputs``, constants and lengths.

    Args:
        outputs: Values of one graph.
        inputs: Where to stop.
        largest: Bytes of the largest constant that may be read; None: any.
        by_length: Take what a Shape asks from the names of dimensions, where these are known.
        subject: How a reason begins.

    Raises:
        NearMiss: they depend on another input, on a larger weight, or on an operator that only its target computes.
    """
    found: set[ir.Node] = set()
    constants: dict[ir.Value, None] = {}
    lengths: set[ir.Node] = set()
    stack: list[ir.Value | None] = list(outputs)
    while stack:
        value = stack.pop()
        if value is None or value in inputs:
            continue
        if value.is_initializer():
            tensor = value.const_value
            if tensor is None or (largest is not None and tensor.nbytes > largest):
                raise NearMiss(f"{subject} on the weight {value.name}")
            constants[value] = None
            continue
        node = value.producer()
        if node is None:
            raise NearMiss(f"{subject} on the input {value.name}")
        if node.domain or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            raise NearMiss(f"{subject} on {node.op_type}, which cannot be computed here")
        if node in found:
            continue
        found.add(node)
        if by_length and shape_of(node, dict.fromkeys(("batch", "sequence", "past", "total"), 1)) is not None:
            lengths.add(node)
        else:
            stack.extend(reversed(node.inputs))
    graph = next((node.graph for node in found), None)
    nodes = tuple(node for node in graph if node in found) if graph is not None else ()
    return Subgraph(tuple(outputs), nodes, tuple(node for node in nodes if node in lengths), tuple(constants))


def shape_of(node: ir.Node, sizes: Mapping[str, int]) -> list[int] | None:
    """What a Shape gives, from the dimensions that its input states; None where one is not known, or another node."""
    if node.op_type != "Shape" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    shape = [size_of(dim, sizes) for dim in node.inputs[0].shape]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    known = [size for size in shape[start:end] if size is not None]
    return known if len(known) == len(shape[start:end]) else None


def call_sizes(batch: int, past: int, seq: int) -> dict[str, int]:
    """What the names of dimensions stand for in one call."""
    return {"batch": batch, "sequence": seq, "past": past, "total": past + seq}


def content(value: ir.Value) -> Array:
    """What an initializer holds."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def compute(graph: ir.Graph, feeds: Mapping[str, Array], subject: str = "it") -> list[Array]:
    """A small graph's outputs, by ONNX's reference evaluator.

    Raises:
        NearMiss: it cannot compute them.
    """
    from onnx.reference import ReferenceEvaluator

    try:
        results = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(None, dict(feeds))
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, IndexError, AttributeError) as error:
        raise NearMiss(f"{subject} cannot be computed: {error}") from error
    return [np.asarray(result) for result in results]


def evaluate(value: ir.Value | None, *, past: int, seq: int) -> Array:
    """Compute a value that depends on nothing but the lengths of a call.

    Raises:
        NearMiss: it depends on more than them.
    """
    if value is None:
        raise NearMiss("there is no value")
    part, sizes = cut([value]), call_sizes(BATCH, past, seq)
    known = {constant: content(constant) for constant in part.constants}
    known |= {node.outputs[0]: np.asarray(shape_of(node, sizes), np.int64) for node in part.lengths}
    return known[value] if value in known else compute(part.copy({}, known), {})[0]


def slot_offset(values: Sequence[ir.Value | None], rows: Callable[[list[Array]], Array]) -> int | None:
    """What is added to a token's slot to give a number by token, [seq]; None when it is something else.

    Args:
        values: What the numbers are made of; they depend on lengths alone.
        rows: The numbers, from what the values are.
    """
    offsets = set()
    for past, seq in SAMPLES:
        try:
            numbers = rows([evaluate(value, past=past, seq=seq) for value in values])
        except NearMiss:
            return None
        if numbers.shape != (seq,) or not np.array_equal(numbers, numbers[0] + np.arange(seq)):
            return None
        offsets.add(float(numbers[0]) - past)
    offset = offsets.pop()
    return None if offsets or not offset.is_integer() else int(offset)


def _copy_node(node: ir.Node, stem: str, copies: dict[ir.Value, ir.Value], half: ir.DataType | None) -> ir.Node:
    inputs = [copies[value] if value is not None else None for value in node.inputs]
    attributes = list(node.attributes.values())
    if half is not None and node.op_type == "Cast" and node.attributes.get_int("to", 0) == half:
        attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    copy = ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs))
    for number, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
        new.name, copies[old] = f"{stem}_{number}", new
    return copy
