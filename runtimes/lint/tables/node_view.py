"""A node as rules see it: attributes as Python values, inputs with type, shape and origin.

In: a graph of an ONNX file, its value types inferred as far as they can be. Out: :class:`NodeView` per node, and
:func:`features`, the properties by which one use of an operator differs from another, as ``is_causal=1``,
``input past_key``, ``T1=float32``. The recorder and ``llmc lint`` share both, so that a table is read as it was
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type"})
"""Attributes whose number names an element type."""
POSITIONS = frozenset({"axis", "batch_axis", "time_axis", "start", "end", "seed", "block_size"})
"""Attributes whose number is a position or size though 0 or 1 is its default: no switches."""
LARGEST_VALUE = 4096
"""Elements up to which a constant is read, so that rules may look at it: shapes, axes, zero points; no weights."""
Dim = int | str | None
TYPE_FEATURE = "T"
"""Names the deciding element type of an operator that ONNX does not define."""


@dataclass(frozen=True)
class ValueView:
    """A tensor between nodes.

    Attributes:
        name: Its name.
        dtype: Element type as ``float16``; None where it is not known.
        shape: Sizes, names of symbolic dimensions, None for nameless ones; None where the rank is not known.
        constant: An initializer, or made by a Constant node.
        graph_input: An input of the graph.
        graph_output: An output of the graph.
        tensor: The stored constant.
    """

    name: str
    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None
    constant: bool = False
    graph_input: bool = False
    graph_output: bool = False
    tensor: TensorProto | None = field(default=None, compare=False, repr=False)

    @property
    def value(self) -> npt.NDArray[Any] | None:
        """A small constant's elements; None where it is large, kept outside of the file, or no constant."""
        tensor = self.tensor
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
            return None
        if np.prod(tensor.dims, dtype=np.int64) > LARGEST_VALUE:
            return None
        return np.asarray(numpy_helper.to_array(tensor))


@dataclass(frozen=True)
class NodeView:
    """One node.

    Attributes:
        op_type: Its operator.
        domain: Its domain; empty for ONNX's own.
        name: Its name in the file, which may be empty.
        opset: Version of its domain that the model asks for.
        attributes: By name; tensors and graphs as protobuf.
        inputs: None where an optional one is left out.
        outputs: None where one is left out.
    """

    op_type: str
    domain: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[ValueView | None, ...]
    outputs: tuple[ValueView | None, ...]

    @property
    def label(self) -> str:
        """``com.microsoft::MatMulNBits``; ONNX's own operators without a domain."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type

    @property
    def schema(self) -> onnx.defs.OpSchema | None:
        """ONNX's definition at the model's version; None for other domains' operators."""
        return _schema(self.op_type, self.domain, self.opset)

    @property
    def since(self) -> int:
        """Version in which the operator's definition came; that of the domain where ONNX does not define it."""
        return self.schema.since_version if self.schema is not None else self.opset

    def input(self, index: int) -> ValueView | None:
        """An input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int) -> ValueView | None:
        """An output, None where it is left out."""
        return self.outputs[index] if index < len(self.outputs) else None

    @property
    def key_type(self) -> str | None:
        """Element type that decides which kernel runs: that of the first input that is data, else of the output."""
        values = [*self.inputs[KEY_INPUT.get(self.op_type, 0) :], *self.outputs]
        return next((value.dtype for value in values if value is not None), None)


KEY_INPUT = {"Where": 1, "OneHot": 2, "ConstantOfShape": 1}
"""Input whose type decides, where it is not the first."""


@dataclass(frozen=True)
class GraphView:
    """The nodes of one graph, and who reads each value.

    Attributes:
        nodes: In the file's order.
        consumers: Value name -> the nodes that read it.
        folded: Values that constants alone decide.
    """

    nodes: tuple[NodeView, ...]
    consumers: Mapping[str, Sequence[NodeView]]
    folded: frozenset[str]

    def is_constant(self, value: ValueView) -> bool:
        """Whether constants alone decide a value."""
        return value.constant or value.name in self.folded


def view_graph(
    graph: GraphProto, opsets: Mapping[str, int], outer: Mapping[str, ValueView] | None = None
) -> GraphView:
    """View a graph.

    Args:
        graph: With ``value_info``, as :func:`onnx.shape_inference.infer_shapes` leaves it.
        opsets: Version by domain.
        outer: Values of the graphs around a subgraph.
    """
    values = {**(outer or {}), **graph_values(graph)}
    nodes = tuple(view_node(node, values, opsets) for node in graph.node)
    consumers: dict[str, list[NodeView]] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None:
                consumers.setdefault(value.name, []).append(node)
    return GraphView(nodes, consumers, _folded(nodes))


def _folded(nodes: Iterable[NodeView]) -> frozenset[str]:
    """Outputs of nodes that read nothing but constants, and each other."""
    found: set[str] = set()
    for node in nodes:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(value.constant or value.name in found for value in inputs):
            found.update(value.name for value in node.outputs if value is not None)
    return frozenset(found)


def view_node(node: NodeProto, values: Mapping[str, ValueView], opsets: Mapping[str, int]) -> NodeView:
    """View one node; values that are not listed are known by name alone."""
    domain = "" if node.domain == "ai.onnx" else node.domain

    def find(names: Iterable[str]) -> tuple[ValueView | None, ...]:
        return tuple(values.get(name, ValueView(name)) if name else None for name in names)

    attributes = {item.name: attribute_value(item) for item in node.attribute}
    return NodeView(
        node.op_type, domain, node.name, opsets.get(domain, 1), attributes, find(node.input), find(node.output)
    )


def graph_values(graph: GraphProto) -> dict[str, ValueView]:
    """Every value of a graph about which something is known."""
    types: dict[str, tuple[str | None, tuple[Dim, ...] | None]] = {}
    for info in (*graph.value_info, *graph.output, *graph.input):
        dtype, shape = _type_of(info)
        known = types.get(info.name, (None, None))
        types[info.name] = (dtype or known[0], known[1] if shape is None else shape)
    constants: dict[str, TensorProto | None] = {item.name: item for item in graph.initializer}
    constants |= {item.values.name: None for item in graph.sparse_initializer}
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            constants[node.output[0]] = next((item.t for item in node.attribute if item.name == "value"), None)
    types |= {
        name: (dtype_name(item.data_type), tuple(item.dims)) for name, item in constants.items() if item is not None
    }
    inputs = {item.name for item in graph.input} - constants.keys()
    outputs = {item.name for item in graph.output}
    return {
        name: ValueView(
            name,
            *types.get(name, (None, None)),
            constant=name in constants,
            graph_input=name in inputs,
            graph_output=name in outputs,
            tensor=constants.get(name),
        )
        for name in {**types, **constants}
    }


def dtype_name(number: int) -> str:
    """ONNX's number of an element type as NumPy names it: ``float32``, ``bfloat16``, ``int4``."""
    name = str(TensorProto.DataType.Name(number)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def attribute_value(item: AttributeProto) -> Any:
    """An attribute as a Python value."""
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if item.type == AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in value]
    return list(value) if item.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def features(node: NodeView) -> frozenset[str]:
    """What tells this use of the operator from another, as short strings."""
    found = {f"since={node.since}"}
    schema = node.schema
    for name, value in node.attributes.items():
        default = _default(schema, name)
        if value != default:
            found.add(_attribute_feature(name, value, switch=default in (0, 1) and name not in POSITIONS))
    if schema is not None:
        found |= _ports("input", schema.inputs, node.inputs)
        found |= _ports("output", schema.outputs, node.outputs)
        found |= _types(schema, node)
    elif node.key_type is not None:
        found.add(f"{TYPE_FEATURE}={node.key_type}")
    return frozenset(found)


def _attribute_feature(name: str, value: Any, *, switch: bool) -> str:
    if isinstance(value, int) and name in DTYPE_ATTRIBUTES:
        return f"{name}={dtype_name(value)}"
    if isinstance(value, str) or (switch and isinstance(value, int)):
        return f"{name}={value}"
    return f"attribute {name}"


def _ports(kind: str, parameters: Sequence[Any], values: Sequence[ValueView | None]) -> set[str]:
    """Optional inputs or outputs that are there."""
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    pairs = zip(parameters, values, strict=False)
    return {f"{kind} {item.name}" for item, value in pairs if item.option == optional and value is not None}


def _types(schema: onnx.defs.OpSchema, node: NodeView) -> set[str]:
    constraints = {item.type_param_str for item in schema.type_constraints}
    pairs = zip(schema.inputs, node.inputs, strict=False)
    known = {(item.type_str, value.dtype) for item, value in pairs if value is not None and value.dtype is not None}
    return {f"{parameter}={dtype}" for parameter, dtype in known if parameter in constraints}


def _default(schema: onnx.defs.OpSchema | None, name: str) -> Any:
    if schema is None or name not in schema.attributes:
        return None
    item = schema.attributes[name].default_value
    return attribute_value(item) if item.type else None


@cache
def _schema(op_type: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _type_of(info: ValueInfoProto) -> tuple[str | None, tuple[Dim, ...] | None]:
    if not info.type.HasField("tensor_type"):
        kind = info.type.WhichOneof("value")
        return (kind.removesuffix("_type") if kind else None), None
    tensor = info.type.tensor_type
    dtype = dtype_name(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
    )
