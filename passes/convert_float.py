"""The float type in which a graph computes.

to float32    float16 and bfloat16 weights, inputs, outputs, casts   →   float32
to half       activations, weights and the KV cache in float32       →   float16 or bfloat16

To float32 is for processors that compute in nothing less, and for the passes, which know one float type. To half is
for GPUs. What is computed from positions, masks and other integers alone stays float32 and is cast where it meets an
activation: a position of 8,191 times a frequency has no meaning in eleven bits. Constants beyond the half type's
range become its largest value, so that a very negative mask does not become an infinite one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from llmc.compiler.errors import UnsupportedModelError
from llmc.compiler.lazy_weight import LazyWeight, as_weight, cast_weight, numpy_dtype
from llmc.passes.graph_pass import GraphPass, Tally
from llmc.passes.graph_query import SMALL, add_initializer

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class ConvertFloat(GraphPass):
    """Convert weights, inputs and everything computed from them; weights are cast lazily.

    Attributes:
        to: The float type: of everything (``fp32``), or of activations, weights and cache (``fp16``, ``bf16``).
    """

    to: Literal["fp32", "fp16", "bf16"] = "fp32"

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Convert the graph.

        Raises:
            UnsupportedModelError: half precision is asked for, and part of the graph is a loop or a branch.
        """
        if self.to == "fp32":
            _to_float32(model.graph, tally)
        else:
            _ToHalf(model.graph, TYPES[self.to], tally).run()


def _to_float32(graph: ir.Graph, tally: Tally) -> None:
    """Initializers, graph inputs, what nodes make, and casts to half."""
    for value in graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype in HALF:
            value.const_value = cast_weight(value.const_value, ir.DataType.FLOAT)
            value.dtype = ir.DataType.FLOAT
            tally.count("weights")
    for node in graph:
        if node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to", 1)) in HALF:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            tally.count("casts")
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.dtype in HALF:
            value.dtype = ir.DataType.FLOAT
            tally.count("values")


class _ToHalf:
    """One conversion: which values are activations, and what was cast or copied on the way."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, tally: Tally) -> None:
        self._graph, self._half, self._tally = graph, half, tally
        self._activations: set[ir.Value] = {value for value in graph.inputs if value.dtype == ir.DataType.FLOAT}
        self._converted: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for value in self._activations:
            value.dtype = self._half
            self._tally.count("values")
        for node in list(self._graph):
            if any(self._is_activation(value) for value in node.inputs):
                self._convert(node)
        if not self._tally.fired:
            return
        for name in [name for name, value in self._graph.initializers.items() if not list(value.uses())]:
            if not self._graph.initializers[name].is_graph_output():
                del self._graph.initializers[name]

    def _is_activation(self, value: ir.Value | None) -> bool:
        """Made of the cache or of a weight; small constants and tables of the graph's own take either side."""
        if value is None:
            return False
        if value in self._activations:
            return True
        tensor = value.const_value if value.is_initializer() else None
        is_float = tensor is not None and tensor.dtype == ir.DataType.FLOAT
        return is_float and tensor is not None and (isinstance(tensor, LazyWeight) or tensor.size > SMALL)

    def _convert(self, node: ir.Node) -> None:
        if any(attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in _given(node)):
            raise UnsupportedModelError(
                f"{node.name or node.op_type} is a loop over tokens, which llmc computes in float32; the model's "
                "layers that keep a state do not run in half precision: compile it with --target cpu"
            )
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self._activations and _is_float32(value):
                node.replace_input_with(index, self._in_half(value, node))
        if node.op_type == "Cast" and node.attributes.get_int("to", 1) == int(ir.DataType.FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(self._half))
            self._tally.count("casts")
        for output in node.outputs:
            made_half = output.dtype == ir.DataType.FLOAT or (output.dtype is None and _keeps_type(node))
            if made_half:
                output.dtype = self._half
                self._activations.add(output)
                self._tally.count("values")

    def _in_half(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """``value`` as a half-precision constant, or cast once where it is computed."""
        if value not in self._converted:
            tensor = value.const_value if value.is_initializer() else None
            if tensor is not None:
                name = value.name or "constant"
                if all(self._takes_half(use.node) for use in value.uses()):
                    # No other use keeps the float32 constant, whose name the half one takes over.
                    del self._graph.initializers[name]
                made = add_initializer(self._graph, name, self._half_constant(tensor))
                self._tally.count("weights")
            else:
                cast = ir.node("Cast", [value], {"to": int(self._half)}, name=f"{value.name}/to_half")
                self._graph.insert_before(node, cast)
                made = cast.outputs[0]
                made.dtype, made.shape = self._half, value.shape
                self._tally.count("casts added")
            self._converted[value] = made
            self._activations.add(made)
        return self._converted[value]

    def _takes_half(self, node: ir.Node) -> bool:
        return any(self._is_activation(value) for value in node.inputs)

    def _half_constant(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.size > SMALL or isinstance(tensor, LazyWeight):
            return cast_weight(as_weight(tensor), self._half)
        limit = np.float32(ir_limit(self._half))
        content = np.clip(np.asarray(tensor.numpy(), np.float32), -limit, limit)
        return ir.Tensor(content.astype(numpy_dtype(self._half)), dtype=self._half)


def ir_limit(half: ir.DataType) -> float:
    """Largest finite value of a half type."""
    return 65504.0 if half == ir.DataType.FLOAT16 else 3.3895313892515355e38


def _given(node: ir.Node) -> list[ir.Attr]:
    return [attribute for attribute in node.attributes.values() if isinstance(attribute, ir.Attr)]


def _is_float32(value: ir.Value) -> bool:
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.dtype == ir.DataType.FLOAT
    return value.dtype == ir.DataType.FLOAT


INTEGER_RESULTS = frozenset(
    {"Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
     "IsNaN", "IsInf", "Not", "And", "Or", "Xor", "Cast"}
)  # fmt: skip


def _keeps_type(node: ir.Node) -> bool:
    """Whether an output whose type is not recorded is of the inputs' float type."""
    return node.op_type not in INTEGER_RESULTS
