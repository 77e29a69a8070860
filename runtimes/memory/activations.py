"""How many bytes of intermediate values a graph holds at once, from the shapes that it states.

In: an onnx_ir graph, sizes of its symbolic dimensions. Out: :class:`LiveSet`, the largest sum of values that are
alive together when the nodes run in order.

    live before a node      values that this node or a later one reads, and the graph's inputs
    at the node             these and its outputs; of a subgraph, the most that its body holds

A reshaped value is the value that was reshaped. A value whose shape the graph does not state gets the size that its
operator and its inputs, or the operators that read it, imply; where they imply none it is counted as nothing, and
said so. A runtime may reuse a buffer where this counts two, and may round its blocks up: this estimates what is
needed, not what an allocator reserves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.dimensions import size_of

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_KEEP_ALL = _VIEWS | {"Transpose", "Cast"}
#: Operators whose output has no more elements than their first input.
_NO_LARGER = frozenset(
    {
        *_VIEWS,
        *("Cast", "Slice", "Transpose", "ScatterElements", "ScatterND", "CumSum"),
        *("Softmax", "LogSoftmax", "RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization"),
        *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ArgMax"),
    }
)
#: Operators whose output has as many elements as their largest input (two inputs that stretch each other are rare).
_ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod", "Where", "And", "Or", "Not"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
        *("Sigmoid", "Tanh", "Relu", "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish", "Softplus"),
        *("Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs", "Cos", "Sin", "Erf", "Floor", "Clip"),
    }
)
_WIDEST = 8.0
"""Bytes of an element whose type is not stated: those of an int64."""


@dataclass(frozen=True)
class LiveSet:
    """The most that a graph holds at once.

    Attributes:
        bytes: Of inputs and intermediate values; what the caller counts elsewhere is left out.
        node: Where that is: the node's name, or its operator where it has none; empty for a graph without nodes.
        unknown: Operators with outputs of which not even a bound is known, and how many; these count as nothing.
        bodies: Operators with a subgraph in which there are such outputs, and how many.
    """

    bytes: int
    node: str
    unknown: tuple[tuple[str, int], ...]
    bodies: tuple[tuple[str, int], ...]


def largest_live_set(
    graph: ir.Graph, dimensions: Mapping[str, int], elsewhere: Collection[str] = frozenset()
) -> LiveSet:
    """Walk the nodes in their order and add up what is alive.

    Args:
        graph: Its nodes sorted, as ONNX wants them. Initializers are not counted.
        dimensions: Size of each symbolic dimension; an expression as ``batch*sequence`` is computed from them.
        elsewhere: Names of inputs and outputs that are counted elsewhere, as the KV cache.
    """
    sizes = ValueSizes(dimensions)
    bodies: Counter[str] = Counter()
    peak, node = _walk(graph, sizes, bodies, frozenset(elsewhere))
    return LiveSet(peak, node, tuple(sorted(sizes.unknown.items())), tuple(sorted(bodies.items())))


class ValueSizes:
    """Elements and bytes of values, each worked out once.

    Attributes:
        unknown: Outputs without a size, by operator.
    """

    def __init__(self, dimensions: Mapping[str, int]) -> None:
        """Take the sizes of the symbolic dimensions."""
        self.unknown: Counter[str] = Counter()
        self._dimensions = dimensions
        self._expressions: dict[int | str | None, int | None] = {}
        self._elements: dict[ir.Value, int | None] = {}
        self._itemsizes: dict[ir.Value, float] = {}

    def bytes(self, value: ir.Value) -> int:
        """Bytes of a value; 0 where its size is not known, which :attr:`unknown` then counts."""
        elements = self.elements(value)
        if elements is None:
            node = value.producer()
            self.unknown[node.op_type if node is not None else "input"] += 1
            return 0
        return math.ceil(elements * self._itemsize(value))

    def elements(self, value: ir.Value | None) -> int | None:
        """Elements of a value, or None where neither its shape nor its operator tells."""
        if value is None:
            return None
        if value not in self._elements:
            self._elements[value] = None  # a loop in a damaged graph ends here
            stated = self._stated(value)
            self._elements[value] = self._implied(value) if stated is None else stated
        return self._elements[value]

    def _stated(self, value: ir.Value) -> int | None:
        shape = value.shape if value.const_value is None else value.const_value.shape
        if shape is None:
            return None
        sizes = [self._size(dim) for dim in shape]
        return math.prod(size for size in sizes if size is not None) if None not in sizes else None

    def _size(self, dim: int | ir.SymbolicDimProtocol) -> int | None:
        name = dim if isinstance(dim, int) else dim.value
        if name not in self._expressions:
            self._expressions[name] = size_of(dim, self._dimensions)
        return self._expressions[name]

    def inside(self, node: ir.Node) -> ValueSizes:
        """Sizes within a subgraph of ``node``: of a ``Scan``, a step's inputs follow from the whole ones."""
        sizes = ValueSizes(self._dimensions)
        if node.op_type == "Scan":
            body = node.attributes["body"].as_graph()
            states = _states(node)
            steps = self._steps(node)
            for index, (whole, step) in enumerate(zip(node.inputs, body.inputs, strict=False)):
                elements = self.elements(whole)
                if index >= states:
                    elements = elements // steps if elements is not None and steps else None
                if sizes.elements(step) is None:
                    sizes._elements[step] = elements
                if step.dtype is None and whole is not None:
                    sizes._itemsizes[step] = self._itemsize(whole)
        return sizes

    def _implied(self, value: ir.Value) -> int | None:
        """What the operator and its inputs imply, else what the operators that read it do."""
        node = value.producer()
        found = self._produced(node, value) if node is not None else None
        if found is not None:
            return found
        # What is broadcast has no more elements than the result; what is only rearranged has as many.
        readers = [use.node for use in value.uses() if use.node.op_type in _KEEP_ALL | _ELEMENTWISE]
        bounds = [bound for reader in readers if (bound := self._stated(reader.outputs[0])) is not None]
        return min(bounds, default=None)

    def _produced(self, node: ir.Node, value: ir.Value) -> int | None:
        kind, inputs = node.op_type, [self.elements(operand) for operand in node.inputs if operand is not None]
        first = inputs[0] if inputs else None
        if kind in {"Shape", "Size"}:
            shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
            return len(shape) if shape is not None else int(_WIDEST)
        if kind == "Scan":
            return self._scanned(node, value)
        if first is None:
            return None
        if kind == "Split":
            return math.ceil(first / len(node.outputs))  # together they are the input
        if kind == "MatMulNBits":
            width = node.attributes.get_int("K", 0)
            return first // width * node.attributes.get_int("N", 0) if width else None
        if kind in _NO_LARGER:
            return first
        known = [size for size in inputs if size is not None]
        if len(known) < len(inputs):
            return None
        return max(known) if kind in _ELEMENTWISE else sum(known) if kind == "Concat" else None

    def _scanned(self, node: ir.Node, value: ir.Value) -> int | None:
        """A state has the size that it began with; a scan output, that of a step times the number of steps."""
        index = node.outputs.index(value)
        if index < _states(node):
            return self.elements(node.inputs[index])
        steps, step = self._steps(node), self.inside(node).elements(node.attributes["body"].as_graph().outputs[index])
        return None if steps is None or step is None else step * steps

    def _steps(self, node: ir.Node) -> int | None:
        """How often a ``Scan`` runs its body: the length of the axes that it scans."""
        scanned = node.inputs[_states(node) :]
        axes = node.attributes.get_ints("scan_input_axes", [0] * len(scanned))
        for value, axis in zip(scanned, axes, strict=True):
            length = self._size(value.shape[axis]) if value is not None and value.shape is not None else None
            if length is not None:
                return length
        return None

    def _itemsize(self, value: ir.Value) -> float:
        """Bytes of an element: as stated, else those of the widest input of its operator."""
        if value not in self._itemsizes:
            self._itemsizes[value] = _WIDEST  # a loop in a damaged graph ends here
            node = value.producer()
            if value.dtype is not None:
                self._itemsizes[value] = float(value.dtype.itemsize)
            elif node is not None and node.op_type == "Cast":
                to = node.attributes.get_int("to", ir.DataType.INT64.value)
                self._itemsizes[value] = float(ir.DataType(to).itemsize)
            elif node is not None:
                operands = [self._itemsize(operand) for operand in node.inputs if operand is not None]
                self._itemsizes[value] = max(operands, default=_WIDEST)
        return self._itemsizes[value]


def _walk(
    graph: ir.Graph, sizes: ValueSizes, bodies: Counter[str], elsewhere: frozenset[str] = frozenset()
) -> tuple[int, str]:
    """The most bytes alive at once, and the node where they are; ``bodies`` counts those with unknown sizes."""
    root = _roots(graph)
    last = {root.get(value, value): index for index, node in enumerate(graph) for value in _reads(node)}
    last |= dict.fromkeys((root.get(value, value) for value in graph.outputs), len(graph))
    counted = [value for value in graph.inputs if not value.is_initializer() and value.name not in elsewhere]
    live = peak = sum(sizes.bytes(value) for value in counted)
    where, ends = "", Counter[int]()
    for index, node in enumerate(graph):
        for value in node.outputs:
            if value.name and value.name not in elsewhere and value not in root:
                size = sizes.bytes(value)
                live += size
                ends[last.get(value, index)] += size
        inner = max((_in_body(node, body, sizes, bodies) for body in _bodies(node)), default=0)
        if live + inner > peak:
            peak, where = live + inner, node.name or node.op_type
        live -= ends[index]
    return peak, where


def _in_body(node: ir.Node, body: ir.Graph, sizes: ValueSizes, bodies: Counter[str]) -> int:
    inside = sizes.inside(node)
    peak, _ = _walk(body, inside, bodies)
    if inside.unknown:
        bodies[node.op_type] += 1
    return peak


def _roots(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """The value whose memory a view is; only views are in it."""
    root: dict[ir.Value, ir.Value] = {}
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _VIEWS and not node.domain and source is not None and not source.is_initializer():
            root[node.outputs[0]] = root.get(source, source)
    return root


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values that a node reads, those that its subgraphs read from outside included."""
    yield from (value for value in node.inputs if value is not None)
    for body in _bodies(node):
        for inner in body:
            yield from _reads(inner)


def _states(scan: ir.Node) -> int:
    """Inputs of a ``Scan`` that are its states; those after them are scanned."""
    return len(scan.inputs) - scan.attributes.get_int("num_scan_inputs", 0)


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
