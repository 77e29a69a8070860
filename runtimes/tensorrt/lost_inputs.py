"""Inputs of ONNX nodes that the parser read and left out of its network.

In: an ONNX model and the network that TensorRT's parser made of it. Out: :func:`lost_inputs`, each input that has no
way to its node's outputs. The parser accepts some inputs that it does not implement (``nonpad_kv_seqlen`` of
Attention), and the engine then computes something else.

    node's output ◀── layers that the parser made for the node ◀── tensors of the node's ONNX inputs

From the tensor of each output the layers are followed backwards until tensors of other ONNX values are met; every
input must be among these. Not asked of:

* values computed from shapes and constants alone that are integers of at most one dimension: the parser may compute
  them itself (the shape of Reshape, the limits of Slice);
* constants of one element, and the inputs that :data:`READ_BY_THE_PARSER` names, which become parameters of layers;
* nodes with a body (If, Loop, Scan): there it is enough that some layer reads the input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from llmc.compiler.base.errors import EngineError

SHAPES = frozenset({"Shape", "Size"})
"""Operators that read no element of their input."""
INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})
READ_BY_THE_PARSER: Mapping[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({2}),
    "DequantizeLinear": frozenset({2}),
    "Resize": frozenset({1, 2, 3}),
}
"""Operator -> constant inputs that are parameters of a layer: zero points, which must be 0, and the like."""


@dataclass(frozen=True)
class LostInput:
    """An input without a way to its node's outputs.

    Attributes:
        name: The operator's name of the input, as ``nonpad_kv_seqlen``.
        value: What was connected to it.
    """

    node: str
    op_type: str
    name: str
    value: str

    def __str__(self) -> str:
        """As in an error."""
        return f"input {self.name} ({self.value}) of {self.op_type} {self.node}"


def require_nothing_lost(title: str, network: Any, parser: Any, model: onnx.ModelProto) -> None:
    """Refuse a network that lacks an input.

    Raises:
        EngineError: names the first ones.
    """
    lost = lost_inputs(network, parser, model)
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        named = ", ".join(map(str, lost[:3]))
        raise EngineError(
            f"{title} reads the graph but leaves out {named}{more}; the engine would compute something else: lower "
            "the node to operators that take it"
        )


def lost_inputs(network: Any, parser: Any, model: onnx.ModelProto) -> list[LostInput]:
    """Every input of a node of the main graph that the network lacks."""
    trace = _Network(network)
    values = _Values(model, parser, trace)
    found = []
    for node in model.graph.node:
        if node.op_type in SHAPES or node.op_type == "Constant":
            continue
        reached = trace.before([values.tensor(name) for name in node.output if name], values.tensors)
        for index, name in enumerate(node.input):
            if name and not _arrives(node, index, name, values, reached, trace):
                found.append(LostInput(node.name, node.op_type, _formal_name(node, index, model), name))
    return found


def _arrives(
    node: onnx.NodeProto, index: int, name: str, values: _Values, reached: frozenset[str], trace: _Network
) -> bool:
    if name in values.constants:
        if values.elements(name) <= 1 or index in READ_BY_THE_PARSER.get(node.op_type, frozenset()):
            return True
        return values.is_small_integer(name) or values.constant_reached(name, reached)
    if values.is_small_integer(name):
        return True
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return values.tensor(name) in trace.read
    return values.tensor(name) in reached


class _Network:
    """The layers of a network by the tensors they make."""

    def __init__(self, network: Any) -> None:
        self.inputs_of: dict[str, tuple[str, ...]] = {}
        self.constants: dict[str, str] = {}
        self.read: set[str] = set()
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            read = tuple(tensor.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None)
            self.read.update(read)
            outputs = [out.name for i in range(layer.num_outputs) if (out := layer.get_output(i)) is not None]
            self.inputs_of.update(dict.fromkeys(outputs, read))
            if not read:
                self.constants.update(dict.fromkeys(outputs, layer.name))

    def before(self, outputs: list[str], others: Mapping[str, str]) -> frozenset[str]:
        """Tensors of other values, and constants' tensors, from which these outputs are computed."""
        reached, seen, waiting = set[str](), set(outputs), list(outputs)
        reached.update(output for output in outputs if output not in self.inputs_of)
        while waiting:
            for tensor in self.inputs_of.get(waiting.pop(), ()):
                # Seen before: an output that is another's input, or the input itself where the parser made no layer.
                if tensor not in seen and tensor not in others:
                    waiting.append(tensor)
                seen.add(tensor)
                reached.add(tensor)
        return frozenset(reached | (set(outputs) & others.keys()))


class _Values:
    """The values of the main graph: their tensors, and which are computed from constants and shapes."""

    def __init__(self, model: onnx.ModelProto, parser: Any, trace: _Network) -> None:
        graph = model.graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._tensor_of: dict[str, str] = {value.name: value.name for value in graph.input}
        self.constants = set(self._initializers)
        self._from_shapes = set(self._initializers)
        self._small: dict[str, bool] = {}
        for node in graph.node:
            for index, name in enumerate(node.output):
                tensor = parser.get_layer_output_tensor(node.name, index) if name and node.name else None
                self._tensor_of[name] = name if tensor is None else tensor.name
                if tensor is not None:
                    element_type = str(tensor.dtype).rpartition(".")[2]
                    self._small[name] = len(tensor.shape) <= 1 and element_type in ("INT64", "INT32", "BOOL")
            given = [name for name in node.input if name]
            if node.op_type == "Constant" or (given and all(name in self.constants for name in given)):
                self.constants.update(node.output)
            if node.op_type in SHAPES or all(name in self._from_shapes for name in given):
                self._from_shapes.update(node.output)
        #: Tensor -> value, for the values that are computed from inputs.
        self.tensors = {tensor: name for name, tensor in self._tensor_of.items() if name not in self.constants}
        self._layer_of_constant = trace.constants

    def tensor(self, name: str) -> str:
        return self._tensor_of.get(name, name)

    def elements(self, name: str) -> int:
        tensor = self._initializers.get(name)
        # Not of a node's output: its own inputs are looked at.
        return 0 if tensor is None else math.prod(tensor.dims)

    def is_small_integer(self, name: str) -> bool:
        """Computed from shapes and constants alone, an integer of at most one dimension."""
        if name not in self._from_shapes:
            return False
        if (tensor := self._initializers.get(name)) is not None:
            return tensor.data_type in INTEGERS and len(tensor.dims) <= 1
        return self._small.get(name, True)

    def constant_reached(self, name: str, reached: frozenset[str]) -> bool:
        """A layer that bears the initializer's name is among what was reached."""
        layers = (self._layer_of_constant.get(tensor) for tensor in reached)
        return any(layer is not None and re.sub(r"_\d+$", "", layer.removeprefix(name)) == "" for layer in layers)


def _formal_name(node: onnx.NodeProto, index: int, model: onnx.ModelProto) -> str:
    """The operator's own name of an input."""
    version = next((item.version for item in model.opset_import if item.domain == node.domain), 1)
    try:
        formal: Iterator[Any] = iter(onnx.defs.get_schema(node.op_type, version, node.domain).inputs)
    except onnx.defs.SchemaError:
        return str(index)
    names = [str(item.name) for item in formal]
    return names[index] if index < len(names) else f"{names[-1] if names else ''}[{index}]"
