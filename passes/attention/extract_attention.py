"""A layer's attention as a graph of its own that runs on small inputs.

In: :class:`AttentionSite`. Out: :class:`ExtractedAttention`: arrays in, arrays out, on
ONNX Runtime. It may depend on query, keys, values, the padding mask, the positions, on lengths, and on constants.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.errors import first_line
from llmc.compiler.graph.operators.domain import OPSET
from llmc.passes.attention.attention_site import AttentionSite, Heads
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import NearMiss

Array = npt.NDArray[Any]
LARGEST = 32 * 2**20
"""Bytes of a constant that belongs to attention: a table of masks is one, a projection of a real model is not."""
HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FEEDS = ("attention_mask", "position_ids")
QUERY, KEY, VALUE = "query", "present_key", "present_value"


class ExtractedAttention:
    """The part of a graph between a query and keys and values of the cache, and the attention's output.

    Attributes:
        site: Where it is.
        nodes: Its nodes, in graph order.
        constants: The initializers that it reads.
        signature: Equal for two that compute the same.
    """

    def __init__(self, model: ir.Model, site: AttentionSite) -> None:
        """Cut it out.

        Raises:
            NearMiss: it depends on something else than it may.
        """
        self.site = site
        self._cuts = {site.query.value: QUERY, site.key.outputs[0]: KEY, site.value.outputs[0]: VALUE}
        self.constants: list[ir.Value] = []
        self._shapes: list[ir.Node] = []
        self.nodes = self._ancestors(model)
        self._feeds = {v: v.name or "" for v in model.graph.inputs if v.name in FEEDS}
        self._constant_arrays = {v: _array(v, self._half) for v in self.constants}
        self.signature = self._sign()
        self._session: Any = None

    @property
    def _half(self) -> ir.DataType | None:
        """The half precision in which the graph computes; the measurement is in float32."""
        dtype = self.site.query.value.dtype
        return dtype if dtype in HALF else None

    def lengths(self) -> set[int]:
        """Integers among its constants, and sizes of its tables: lengths at which it may do something else."""
        found: set[int] = set()
        for array in self._constant_arrays.values():
            found.update(array.shape)
            if array.dtype.kind == "i" and array.size <= 8:
                found.update(int(x) for x in array.reshape(-1))
        return found

    def run(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        """The output, [batch, heads, seq, value_dim] float64.

        Args:
            query: [batch, heads, seq, key_dim] float32.
            key, value: [batch, kv_heads, total, dim] float32: past and chunk.
            mask: [batch, total] int64.

        Raises:
            NearMiss: ONNX Runtime cannot run it at these lengths.
        """
        batch, _, seq, _ = query.shape
        total = mask.shape[1]
        sizes = {"batch": batch, "sequence": seq, "past": total - seq, "total": total}
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, total - seq :]
        feeds: dict[str, Array] = {QUERY: to_layout(query, self.site.query), KEY: key, VALUE: value}
        feeds |= {"attention_mask": mask, "position_ids": positions}
        feeds |= {f"shape_{i}": np.asarray(shape_of(node, sizes)) for i, node in enumerate(self._shapes)}
        if self._session is None:
            self._session = open_graph(self._graph())
        known = {item.name for item in self._session.get_inputs()}
        output = run_session(self._session, {name: array for name, array in feeds.items() if name in known})[0]
        return from_layout(output, self.site.output)

    def _ancestors(self, model: ir.Model) -> list[ir.Node]:
        found: set[ir.Node] = set()
        constants: dict[ir.Value, None] = {}
        stack: list[ir.Value | None] = [self.site.output.value]
        while stack:
            value = stack.pop()
            if value is None or value in self._cuts or (value.is_graph_input() and value.name in FEEDS):
                continue
            if value.is_initializer():
                if value.const_value is None or value.const_value.nbytes > LARGEST:
                    raise NearMiss(f"it depends on the weight {value.name}")
                constants[value] = None
                continue
            node = value.producer()
            if node is None:
                raise NearMiss(f"it depends on {value.name}, too")
            if node.domain or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
                raise NearMiss(f"it depends on {node.op_type}, which is not measured")
            if node not in found:
                found.add(node)
                stack.extend(() if _is_length(node) else reversed(node.inputs))
        if self.site.product not in found:
            raise NearMiss("its values are not weighted by the products of its queries and keys")
        self._shapes = [node for node in model.graph if node in found and _is_length(node)]
        self.constants = list(constants)
        return [node for node in model.graph if node in found]

    def _sign(self) -> str:
        """Operators, attributes and constants, with the values numbered in order."""
        numbers: dict[ir.Value, str] = dict(self._cuts) | self._feeds
        for constant, array in self._constant_arrays.items():
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            numbers[constant] = f"{array.dtype}{array.shape}{digest}"
        site = self.site
        layouts = [(heads.kind, heads.count) for heads in (site.query, site.output)]
        parts: list[str] = [f"{layouts} {site.kv_heads} {site.key_dim} {site.value_dim} {self._half}"]
        for index, node in enumerate(self.nodes):
            inputs = (
                [dims(node.inputs[0])]
                if node in self._shapes
                else [numbers.get(v, "") if v else "" for v in node.inputs]
            )
            options = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
            parts.append(f"{node.op_type} {options} {inputs}")
            numbers |= {output: f"{index}.{i}" for i, output in enumerate(node.outputs)}
        parts.append(numbers[site.output.value])
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _graph(self) -> ir.Graph:
        float_type, int_type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)
        ranks = {QUERY: 3 if self.site.query.kind == "merged" else 4, KEY: 4, VALUE: 4}
        copies: dict[ir.Value, ir.Value] = {}
        for value, name in self._cuts.items():
            copies[value] = ir.Value(name=name, type=float_type, shape=ir.Shape([None] * ranks[name]))
        for value, name in self._feeds.items():
            copies[value] = ir.Value(name=name, type=int_type, shape=ir.Shape([None, None]))
        for index, node in enumerate(self._shapes):
            copies[node.outputs[0]] = ir.Value(name=f"shape_{index}", type=int_type, shape=ir.Shape([None]))
        inputs = list(copies.values())
        for index, (constant, array) in enumerate(self._constant_arrays.items()):
            tensor = ir.tensor(array, name=f"constant_{index}")
            copies[constant] = ir.val(f"constant_{index}", const_value=tensor)
        initializers = [copies[constant] for constant in self.constants]
        nodes = [self._copy(node, index, copies) for index, node in enumerate(self.nodes) if node not in self._shapes]
        output = copies[self.site.output.value]
        output.type = float_type
        return ir.Graph(
            inputs, [output], nodes=nodes, initializers=initializers, opset_imports={"": OPSET}, name="cut"
        )

    def _copy(self, node: ir.Node, index: int, copies: dict[ir.Value, ir.Value]) -> ir.Node:
        inputs = [copies[value] if value is not None else None for value in node.inputs]
        attributes = list(node.attributes.values())
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == self._half:
            attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
        copy = ir.Node("", node.op_type, inputs, attributes, num_outputs=len(node.outputs))
        for number, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
            new.name, copies[old] = f"value_{index}_{number}", new
        return copy


def _array(value: ir.Value, half: ir.DataType | None) -> Array:
    assert value.const_value is not None
    array = np.asarray(value.const_value.numpy())
    return array.astype(np.float32) if half is not None and value.const_value.dtype == half else array


def _is_length(node: ir.Node) -> bool:
    """Whether a node asks for a shape that is known by the names of its dimensions."""
    if node.op_type != "Shape":
        return False
    try:
        shape_of(node, {"batch": 2, "sequence": 3, "past": 5, "total": 8})
    except NearMiss:
        return False
    return True


def shape_of(node: ir.Node, sizes: Mapping[str, int]) -> list[int]:
    """What a Shape node gives, from the symbolic dimensions of its input.

    Raises:
        NearMiss: a dimension is not known.
    """
    shape = dims(node.inputs[0])
    if shape is None:
        raise NearMiss("a shape is not known")
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    return [dim if isinstance(dim, int) else _size(dim, sizes) for dim in shape[start:end]]


def _size(text: str | None, sizes: Mapping[str, int]) -> int:
    """A symbolic dimension: names and numbers, added, subtracted and multiplied."""

    def compute(tree: ast.expr) -> int:
        match tree:
            case ast.Name(id=name) if name in sizes:
                return sizes[name]
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return compute(left) + compute(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return compute(left) - compute(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return compute(left) * compute(right)
        raise NearMiss(f"the dimension {text} is not known")

    return compute(ast.parse(text or "_", mode="eval").body)


def to_layout(array: Array, heads: Heads) -> Array:
    """[batch, heads, seq, dim] in the layout of ``heads``."""
    if heads.kind == "heads_first":
        return array
    swapped = np.ascontiguousarray(array.transpose(0, 2, 1, 3))
    return swapped if heads.kind == "heads_second" else swapped.reshape(*swapped.shape[:2], -1)


def from_layout(array: Array, heads: Heads) -> Array:
    """The opposite; in float64."""
    wide = array.astype(np.float64)
    if heads.kind == "heads_first":
        return wide
    if heads.kind == "merged":
        wide = wide.reshape(*wide.shape[:2], heads.count, -1)
    return wide.transpose(0, 2, 1, 3)


def open_graph(graph: ir.Graph, functions: Sequence[ir.Function] = ()) -> Any:
    """A session on a small graph, one thread, as it is written.

    Raises:
        NearMiss: ONNX Runtime is not installed, or refuses it.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise NearMiss("it can only be measured where onnxruntime is installed") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = ir.to_proto(ir.Model(graph, ir_version=10, functions=list(functions))).SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NearMiss(f"ONNX Runtime does not take it: {first_line(error)[:200]}") from error


def run_session(session: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs.

    Raises:
        NearMiss: ONNX Runtime fails.
    """
    try:
        results: list[Array] = session.run(None, dict(feeds))
    except Exception as error:
        raise NearMiss(f"ONNX Runtime cannot run it: {first_line(error)[:200]}") from error
    return results
