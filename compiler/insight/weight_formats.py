"""In how many bits a graph's weights are stored: numbers, and all that stands beside them.

In: an onnx_ir model, its weights still in their files. Out: a :class:`WeightFormat` for each form of weight that
products, look-ups and experts read. What two of them read counts once. No weight is read.

Bytes are those of numbers, of scales, zero points and offsets by block, of scales by row; the weights are those that
a token is multiplied with, so that what fills up a last block makes each of them larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.census import (
    EXPERTS,
    LOOK_UPS,
    MATRIX_PRODUCTS,
    constant_source,
    head_product,
    named_inputs,
    place,
)

_NUMBERS = ("weight", "B", "data", "x")
"""What operators call the numbers of a weight."""
_BESIDE = ("high", "scales", "zero_points", "row_scales", "b_scale", "x_scale", "x_zero_point")
"""And what belongs to them."""


@dataclass(frozen=True)
class WeightFormat:
    """Weights that are stored alike.

    Attributes:
        name: As ``4 bits in blocks of 64``; ``FLOAT``.
        tensors: Matrices and tables.
        weights: Their elements.
        bytes: What they take.
    """

    name: str
    tensors: int
    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        """Of a weight."""
        return 8 * self.bytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class _Stored:
    """One matrix or table; ``tensors`` are its numbers and what stands beside them."""

    name: str
    weights: int
    tensors: tuple[ir.TensorProtocol, ...]


def weight_formats(graph: ir.Graph) -> tuple[WeightFormat, ...]:
    """The forms of a graph's weights, those of most bytes first."""
    groups: dict[str, list[_Stored]] = {}
    for stored in _each(graph).values():
        groups.setdefault(stored.name, []).append(stored)
    formats = [
        WeightFormat(
            name,
            len(items),
            sum(item.weights for item in items),
            sum(tensor.nbytes for item in items for tensor in item.tensors),
        )
        for name, items in groups.items()
    ]
    return tuple(sorted(formats, key=lambda item: (-item.bytes, item.name)))


def linear_weights(graph: ir.Graph) -> WeightFormat:
    """Weights of linear layers and experts together: all but those of the head and of tables for look-ups."""
    head = head_product(graph)
    sources = (
        constant_source(value)
        for node in graph.all_nodes()
        if node is head or node.op_type in LOOK_UPS
        for value in node.inputs
    )
    tensors = (source.const_value for source in sources if source is not None)
    tables = {place(tensor) for tensor in tensors if tensor is not None}
    items = [stored for key, stored in _each(graph).items() if key not in tables]
    size = sum(tensor.nbytes for item in items for tensor in item.tensors)
    return WeightFormat("linear layers", len(items), sum(item.weights for item in items), size)


def all_weights(formats: Iterable[WeightFormat]) -> WeightFormat:
    """Weights of every form together."""
    items = tuple(formats)
    return WeightFormat(
        "all",
        sum(item.tensors for item in items),
        sum(item.weights for item in items),
        sum(item.bytes for item in items),
    )


def _each(graph: ir.Graph) -> dict[object, _Stored]:
    """Each weight by the place of its numbers."""
    found: dict[object, _Stored] = {}
    for node in graph.all_nodes():
        for stored in _stored(node):
            found.setdefault(place(stored.tensors[0]), stored)
    return found


def _stored(node: ir.Node) -> Iterator[_Stored]:
    """The weights that a node reads."""
    kind = node.op_type
    if kind in EXPERTS:
        yield from _experts(node)
    elif kind in MATRIX_PRODUCTS | LOOK_UPS | {"DequantizeLinear"} and not _is_correction(node):
        inputs = named_inputs(node)
        values = [inputs[name] for name in _NUMBERS if name in inputs]
        numbers = _matrix(values[0]) if values else None
        if numbers is None and kind in MATRIX_PRODUCTS:
            numbers = next((tensor for value in node.inputs[:2] if (tensor := _matrix(value)) is not None), None)
        beside = [tensor for name in _BESIDE if (tensor := _constant(inputs.get(name))) is not None]
        offsets = _block_offsets(node) if kind == "MatMulNBits" else None
        if numbers is not None:
            beside += [] if offsets is None else [offsets]
            yield _Stored(*_form(node, numbers), (numbers, *beside))


def _form(node: ir.Node, numbers: ir.TensorProtocol) -> tuple[str, int]:
    """What numbers are called, and how many weights they are."""
    bits = node.attributes.get_int("expert_weight_bits", node.attributes.get_int("bits", 0))
    block = node.attributes.get_int("block_size", 0)
    if node.op_type == "DequantizeLinear" or not bits:
        blocks = f" in blocks of {block}" if block else ""
        return f"{numbers.dtype.name}{blocks}", math.prod(int(size) for size in numbers.shape.numpy())
    sizes = [node.attributes.get_int(name, 0) for name in ("K", "N")]
    weights = math.prod(sizes) or numbers.nbytes * 8 // bits
    return f"{bits} bits in blocks of {block}", weights


def _experts(node: ir.Node) -> Iterator[_Stored]:
    inputs = named_inputs(node)
    for part in ("fc1", "fc2", "fc3"):
        numbers = _constant(inputs.get(part) or inputs.get(f"{part}_experts_weights"))
        beside = (_constant(inputs.get(f"{part}_{name}")) for name in ("scales", "zero_points"))
        if numbers is not None:
            yield _Stored(*_form(node, numbers), (numbers, *(tensor for tensor in beside if tensor is not None)))


def _matrix(value: ir.Value | None) -> ir.TensorProtocol | None:
    """A constant of two axes or more that no node has dequantized."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in {"Transpose", "Cast", "Identity"}:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    tensor = _constant(value) if node is None else None
    return tensor if tensor is not None and len(tensor.shape) > 1 else None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    source = constant_source(value)
    return None if source is None else source.const_value


def _block_offsets(product: ir.Node) -> ir.TensorProtocol | None:
    """Offsets by block that a product of their own adds: Add(product, MatMul(sums of blocks, offsets))."""
    for use in product.outputs[0].uses():
        for value in use.node.inputs if use.node.op_type == "Add" else ():
            correction = value.producer() if value is not None else None
            if correction is not None and _is_correction(correction):
                return _constant(correction.inputs[1])
    return None


def _is_correction(node: ir.Node) -> bool:
    """Whether a node is such a product of sums."""
    sums = node.inputs[0].producer() if node.op_type == "MatMul" and node.inputs[0] is not None else None
    return sums is not None and sums.op_type in {"ReduceSum", "ReduceMean"}
