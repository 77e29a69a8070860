"""The float type in which a graph computes.

to float32    float16 and bfloat16 weights, inputs, outputs, casts   →   float32
to half       activations, weights and the KV cache in float32       →   float16 or bfloat16

To float32 is for processors that compute in nothing less, and for the passes, which know one float type. To half is
for GPUs. What is computed from positions, masks and other integers alone stays float32 and is cast where it meets an
activation: a position of 8,191 times a frequency has no meaning in eleven bits. Small constants beyond the half
type's range become its largest value, so that a very negative mask does not become an infinite one. The residual
stream and the norms that read it may stay float32 as well: see :mod:`llmc.passes.lowering.residual_stream`.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import FloatType
from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.graph.lazy_weight import LazyWeight, as_weight, cast_weight, numpy_dtype
from llmc.passes.graph.graph_query import SMALL, add_initializer, producer
from llmc.passes.graph_pass import Fact, GraphPass, Loss, Order, Tally
from llmc.passes.lowering.residual_stream import residual_stream

HALF: dict[ir.DataType, FloatType] = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class ConvertFloat(GraphPass):
    """Convert weights, inputs and everything computed from them; weights are cast lazily.

    Attributes:
        to: The float type: of everything (``fp32``), or of activations, weights and cache (``fp16``, ``bf16``).
        wide_residual: To half, but the residual stream stays float32.
    """

    to: FloatType = "fp32"
    wide_residual: bool = False

    loss = Loss.FLOATS

    @property
    def order(self) -> Order:
        """To half after what knows float32 alone, and before scales, which have the activations' type."""
        if self.to == "fp32":
            return Order(needs=(Fact.RECURRENCES, Fact.FOLDED), gives=(Fact.FLOAT32,))
        return Order(needs=(Fact.FLOAT32, Fact.ATTENTION, Fact.WEIGHTS), ends=(Fact.FLOAT32,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Convert the graph.

        Raises:
            UnsupportedModelError: half precision is asked for, and part of the graph is a loop or a branch.
        """
        if self.to == "fp32":
            _to_float32(model.graph, tally)
        else:
            wide = residual_stream(model.graph) if self.wide_residual else set()
            _ToHalf(model.graph, TYPES[self.to], tally, wide).run()
            tally.state(rounded_to=self.to)


def _to_float32(graph: ir.Graph, tally: Tally) -> None:
    """Initializers, graph inputs, what nodes make, and casts to half."""
    for value in graph.initializers.values():
        if value.const_value is not None and (half := HALF.get(value.const_value.dtype)) is not None:
            tally.state(rounded_to=half)
            value.const_value = cast_weight(value.const_value, ir.DataType.FLOAT)
            value.dtype = ir.DataType.FLOAT
            tally.count("weights")
    for node in graph:
        if _narrows(node):
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            tally.count("casts")
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.dtype is not None and (half := HALF.get(value.dtype)) is not None:
            tally.state(rounded_to=half)
            value.dtype = ir.DataType.FLOAT
            tally.count("values")


class _ToHalf:
    """One conversion: which values are activations, and what was cast or copied on the way."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, tally: Tally, wide: set[ir.Node]) -> None:
        self._graph, self._half, self._tally, self._wide = graph, half, tally, wide
        self._floats = _float32_values(graph)
        self._activations = {value for value in self._floats if value.is_graph_input() or _is_weight(value)}
        self._nodes = self._mark()
        self._casts: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        self._refuse_bodies()
        # Before anything else: which constants have users of either type is asked of the graph as it was.
        for value in list(self._graph.initializers.values()):
            self._convert_constant(value)
        for node in self._graph:
            if node in self._wide:
                self._read_wide(node)
        for node in self._nodes:
            for index, read in enumerate(node.inputs):
                if read in self._floats and read not in self._activations:
                    node.replace_input_with(index, self._in_half(read, node))
            if node.op_type == "Cast" and node.attributes.get_int("to", 1) == int(ir.DataType.FLOAT):
                node.attributes["to"] = ir.AttrInt64("to", int(self._half))
                self._tally.count("casts")
        for value in self._activations:
            if not value.is_initializer():
                value.dtype = self._half
                self._tally.count("values")

    def _mark(self) -> dict[ir.Node, None]:
        """The nodes that read an activation, in order; their float results are activations, too."""
        marked: dict[ir.Node, None] = {}
        wide = {output for node in self._wide for output in node.outputs}
        for node in self._graph:
            if node in self._wide or _narrows(node):
                continue
            if any(value in self._activations or value in wide for value in node.inputs):
                marked[node] = None
                self._activations.update(output for output in node.outputs if output in self._floats)
        return marked

    def _read_wide(self, node: ir.Node) -> None:
        """Cast the activations that a node in float32 reads; its weights stay what they were."""
        for index, read in enumerate(node.inputs):
            if read is None or read.is_initializer() or read not in self._activations:
                continue
            node.replace_input_with(index, self._cast(read, node, ir.DataType.FLOAT, "to_float"))

    def _refuse_bodies(self) -> None:
        loops = [node for node in self._nodes if any(_is_body(attribute) for attribute in node.attributes.values())]
        captured = [
            use.node for value in self._activations for use in value.uses() if use.node.graph is not self._graph
        ]
        if found := [*loops, *captured]:
            name = found[0].name or found[0].op_type
            raise UnsupportedModelError(
                f"{name} is a loop over tokens, which llmc computes in float32; the model's "
                "layers that keep a state do not run in half precision: compile it with --target cpu"
            )

    def _convert_constant(self, value: ir.Value) -> None:
        """In its place where everything that reads it is half precision; else beside it, under another name."""
        tensor = value.const_value
        users = [use for use in value.uses() if use.node in self._nodes]
        if value not in self._floats or tensor is None or not users:
            return
        made = value
        if len(users) < len(list(value.uses())) or value.is_graph_output():
            made = add_initializer(self._graph, value.name or "constant", self._half_constant(tensor))
            for use in users:
                use.node.replace_input_with(use.idx, made)
        else:
            value.const_value, value.dtype = self._half_constant(tensor), self._half
        self._activations.add(made)
        self._tally.count("weights")

    def _in_half(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """``value``, which no activation reaches, cast once where the first activation meets it."""
        fill = producer(value, "ConstantOfShape")
        if value not in self._casts and fill is not None and all(use.node in self._nodes for use in value.uses()):
            content = fill.attributes.get_tensor("value", ir.tensor(np.zeros(1, np.float32)))
            assert content is not None
            fill.attributes["value"] = ir.AttrTensor("value", self._half_constant(content))
            value.dtype = self._half
            self._tally.count("weights")
            self._casts[value] = value
        return self._cast(value, node, self._half, "to_half")

    def _cast(self, value: ir.Value, node: ir.Node, dtype: ir.DataType, name: str) -> ir.Value:
        """``value`` in another type, cast once, before the first node that asks for it."""
        if value not in self._casts:
            cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}/{name}")
            self._graph.insert_before(node, cast)
            cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
            self._casts[value] = cast.outputs[0]
            self._tally.count("casts added")
        return self._casts[value]

    def _half_constant(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.size > SMALL or isinstance(tensor, LazyWeight):
            return cast_weight(as_weight(tensor), self._half)
        limit = np.float32(ml_dtypes.finfo(numpy_dtype(self._half)).max)  # type: ignore[no-untyped-call]
        content = np.clip(np.asarray(tensor.numpy(), np.float32), -limit, limit)
        return ir.Tensor(content.astype(numpy_dtype(self._half)), dtype=self._half)


def _is_body(attribute: ir.Attr) -> bool:
    return attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def _narrows(node: ir.Node) -> bool:
    """Whether it is a cast to half precision already."""
    return node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to", 1)) in HALF


def _is_weight(value: ir.Value) -> bool:
    """Whether a value is a model's weight: small constants of the graph's own take either side."""
    tensor = value.const_value if value.is_initializer() else None
    return tensor is not None and (isinstance(tensor, LazyWeight) or tensor.size > SMALL)


INTEGER_RESULTS = frozenset(
    {"Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual",
     "IsNaN", "IsInf", "Not", "And", "Or", "Xor"}
)  # fmt: skip


def _float32_values(graph: ir.Graph) -> set[ir.Value]:
    """Inputs, constants and results in float32; where a result's type is not recorded, its operator tells."""
    found = {value for value in (*graph.inputs, *graph.initializers.values()) if value.dtype == ir.DataType.FLOAT}
    for node in graph:
        for index, output in enumerate(node.outputs):
            # An absent output has an empty name.
            known = output.dtype == ir.DataType.FLOAT
            if known or (output.dtype is None and output.name != "" and _makes_float32(node, index, found)):
                found.add(output)
    return found


def _makes_float32(node: ir.Node, index: int, floats: set[ir.Value]) -> bool:
    """Whether an output whose type is not recorded is float32, given which of the node's inputs are."""
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 1) == int(ir.DataType.FLOAT)
    if node.op_type == "ConstantOfShape":
        content = node.attributes.get_tensor("value", None)
        return content is None or content.dtype == ir.DataType.FLOAT
    if node.op_type in INTEGER_RESULTS or (node.op_type == "TopK" and index == 1):
        return False
    return any(value in floats for value in node.inputs)
