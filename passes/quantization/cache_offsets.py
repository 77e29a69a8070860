"""Keys and values about a centre of their own, with the same attention.

    softmax(q · (k - c)) = softmax(q · k): every slot's score changes by q · c, the same for all slots
    sum w (v - c) = sum w v - c, as the weights w of the slots add up to 1

        q, k, v → GroupQueryAttention → W     →     q, k + R⁻¹(-c), v - c' → GroupQueryAttention → W → + W c'

Keys are cached as they were turned at their position, R k, so what they get before is the centre turned back. That is
a product of the row of cosines and sines at the position with a small matrix: one for each layer. Positions, and the
rows of the tables, are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import SEQLENS
from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION as ATTENTION
from llmc.compiler.graph.operators.microsoft import SKIP_NORM
from llmc.passes.graph.chunk_lengths import find_value
from llmc.passes.graph.graph_query import add_initializer, copy_dtype, dims, only_consumer, take_place
from llmc.passes.graph.linear import product_weight
from llmc.passes.graph.node_builder import NodeBuilder
from llmc.passes.quantization.rotary_pairs import RotaryPairs

Array = npt.NDArray[Any]
POSITIONS = "cache_positions"
OF_CENTRES = "llmc.cache_centres"
"""Key of nodes' metadata."""


@dataclass(frozen=True)
class Movable:
    """Whether what an attention caches may lie about a centre, and it still computes the same."""

    keys: bool
    values: bool

    @classmethod
    def of(cls, node: ir.Node) -> Movable:
        """Of a GroupQueryAttention.

        What has a sink has a score that no centre moves, and weights of slots that add up to less than 1. A soft cap
        bends scores, so a constant in all of them is seen. Keys that the operator normalizes itself cannot be met
        between that and the rotation. The tables must be known.
        """
        given, attributes = ATTENTION.arguments(node), node.attributes
        if given["head_sink"] is not None or attributes.get_int("smooth_softmax", 0) != 0:
            return cls(keys=False, values=False)
        plain = given["k_norm_weight"] is None and not attributes.get_float("softcap", 0.0)
        lengths = given["query_seqlens"] is None and given["seqlens_k"] is not None
        tables = all(table_of(given[name]) is not None for name in ("cos_cache", "sin_cache"))
        return cls(keys=plain and (not _rotates(node) or (lengths and tables)), values=True)


def move(node: ir.Node, keys: Sequence[float], values: Sequence[float]) -> None:
    """Let an attention cache its keys and values about these centres.

    Args:
        node: A GroupQueryAttention, packed or not.
        keys: Of each channel as it is cached, [kv_heads * head_dim]; empty: zeros.
        values: The same.
    """
    graph = node.graph
    assert graph is not None
    given = ATTENTION.arguments(node)
    shape = dims(given["past_key"])
    assert shape is not None
    heads, width = shape[1], shape[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    make = NodeBuilder(graph, f"{node.name}/centre")
    rows = _rows(graph, node) if keys and _rotates(node) else None
    key = _matrix(node, keys, heads, width)
    value = -np.asarray(values or np.zeros(heads * width), np.float32).reshape(1, -1)
    if given["key"] is None:
        whole = np.zeros((len(key), _width(given["query"])), np.float32)
        whole[:, -2 * heads * width : -heads * width], whole[-1, -heads * width :] = key, value
        _add(make, node, "query", whole, rows)
    else:
        for name, matrix, made_of in (("key", key, rows), ("value", value, None)):
            if matrix.any():
                _add(make, node, name, matrix, made_of)
    _insert(graph, node, make)
    if values:
        _add_back(node, np.asarray(values, np.float32).reshape(heads, width))


def table_of(value: ir.Value | None) -> Array | None:
    """A table of cosines or sines, [positions, angles], where it is a constant."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())


def _rotates(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("do_rotary", 0))


def _width(value: ir.Value | None) -> int:
    shape = dims(value)
    assert shape is not None
    assert isinstance(shape[-1], int)
    return shape[-1]


def _matrix(node: ir.Node, centres: Sequence[float], heads: int, width: int) -> Array:
    """What a key gets before it is turned, [cosines, sines and a one, channels]; one row where it is not turned."""
    taken = np.asarray(centres or np.zeros(heads * width), np.float32).reshape(heads, width)
    if not (centres and _rotates(node)):
        return -taken.reshape(1, -1)
    cosines, sines = (table_of(ATTENTION.get(node, name)) for name in ("cos_cache", "sin_cache"))
    assert cosines is not None
    assert sines is not None
    pairs, angles = RotaryPairs.of(node, width), cosines.shape[1]
    power = np.square(cosines[0].astype(np.float32)) + np.square(sines[0].astype(np.float32))
    turned = pairs.signs != 0
    taken = (taken / np.where(turned, power[pairs.angles], 1)).astype(np.float32)
    matrix, channels = np.zeros((2 * angles + 1, heads, width), np.float32), np.arange(width)
    matrix[pairs.angles, :, channels] = np.where(turned, -taken, 0).T
    matrix[angles + pairs.angles, :, channels] = (pairs.signs * taken[:, pairs.partners]).T
    matrix[-1] = np.where(turned, 0, -taken)
    return matrix.reshape(len(matrix), -1)


def _add(make: NodeBuilder, node: ir.Node, name: str, matrix: Array, rows: ir.Value | None) -> None:
    """Add to an input of attention what ``rows`` make of ``matrix``; its one row where there are none."""
    value = ATTENTION.get(node, name)
    assert value is not None
    assert value.dtype is not None
    numbers = matrix.astype(value.dtype.numpy())
    if rows is None:
        offset = make.constant(f"{name}.offset", numbers[0])
    else:
        product = make.constant(f"{name}.offset", numbers)
        offset = make.op("MatMul", rows, product, shape=value.shape, dtype=value.dtype)  # type: ignore[arg-type]
    moved = make.op("Add", value, offset, shape=value.shape, dtype=value.dtype)  # type: ignore[arg-type]
    node.replace_input_with(ATTENTION.inputs.index(name), moved)


class _Through(LazyWeight):
    """What a linear layer makes of one vector, [out] in the type of its weight."""

    def __init__(self, weight: LazyWeight, vector: Array) -> None:
        super().__init__(weight.stored_shape[:1], weight.dtype)
        self._weight, self._vector = weight, vector

    def rows(self, start: int, stop: int) -> Array:
        """Of some output features."""
        made: Array = self._weight.rows(start, stop).astype(np.float32) @ self._vector
        return made.astype(self.dtype.numpy())

    def rows_at_once(self) -> int:
        """As many as are read of the weight."""
        return self._weight.rows_at_once()


def _add_back(node: ir.Node, centres: Array) -> None:
    """What attention makes has the centre of the values in it again, each head that of its group.

    Where the product behind it goes to a norm with a residual, the norm adds what the product makes of the centre.
    """
    graph, output, query = node.graph, node.outputs[0], ATTENTION.get(node, "query")
    assert graph is not None
    assert query is not None
    assert query.dtype is not None
    group = node.attributes.get_int("num_heads", 0) // len(centres)
    whole = np.repeat(centres, group, axis=0).reshape(-1)
    product = only_consumer(output)
    norm = only_consumer(product.outputs[0]) if product is not None else None
    if product is not None and norm is not None and SKIP_NORM.is_call(norm) and SKIP_NORM.get(norm, "bias") is None:
        weight = product_weight(product) if product.op_type == "MatMul" else None
        if weight is not None:
            place = SKIP_NORM.inputs.index("bias")
            norm.resize_inputs(place + 1)
            name = f"{node.name}/centre_back.bias"
            norm.replace_input_with(place, add_initializer(graph, name, _Through(weight[1], whole)))
            return
    make = NodeBuilder(graph, f"{node.name}/centre_back")
    total = make.op("Add", output, make.constant("values", whole.astype(query.dtype.numpy())))
    output.dtype = query.dtype
    take_place(output, total)
    make.nodes[0].replace_input_with(0, output)
    output.type, output.shape = total.type, total.shape
    graph.insert_after(node, make.nodes)


def is_of_centres(node: ir.Node) -> bool:
    """Whether a product or look-up is what :func:`move` brought, and none of the model's."""
    return OF_CENTRES in node.metadata_props


def _rows(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Cosines and sines at each token's position, and a one: [batch, seq, 2 * angles + 1]; once for each table."""
    cosines, sines = (ATTENTION.get(node, name) for name in ("cos_cache", "sin_cache"))
    assert cosines is not None
    assert sines is not None
    name = f"cache_angles.{cosines.name}.{sines.name}"
    if (known := find_value(graph, name)) is not None:
        return known
    make, table = NodeBuilder(graph, name), table_of(cosines)
    assert table is not None
    assert cosines.dtype is not None
    places = _positions(graph, node, make)
    ones = make.constant("ones", np.ones((len(table), 1), table.dtype))
    parts = [make.op("Gather", values, places, axis=0) for values in (cosines, sines, ones)]
    shape = [*(dims(ATTENTION.get(node, "query")) or [None, None])[:2], 2 * table.shape[1] + 1]
    rows = make.op("Concat", *parts, axis=-1, shape=shape, dtype=cosines.dtype)
    rows.name = name
    _insert(graph, node, make)
    return rows


def _insert(graph: ir.Graph, before: ir.Node, make: NodeBuilder) -> None:
    for node in make.nodes:
        node.metadata_props[OF_CENTRES] = "1"
    graph.insert_before(before, make.nodes)


def _positions(graph: ir.Graph, node: ir.Node, make: NodeBuilder) -> ir.Value:
    """Where the operator turns each token: rows end at their length, but a first prompt begins at 0.

    Range takes its limits on the host, so nothing that was computed there is copied to the device: a recorded copy
    would read memory that has been used again.
    """
    if (known := find_value(graph, POSITIONS)) is not None:
        return known
    last, query = ATTENTION.get(node, SEQLENS), ATTENTION.get(node, "query")
    zero, one = make.integer(0), make.integer(1)
    seq = make.op("Squeeze", make.op("Shape", query, start=1, end=2))
    back = make.op("Range", make.op("Sub", one, seq), one, one)
    ends = make.op("Unsqueeze", make.op("Cast", last, to=int(ir.DataType.INT64)), make.integers(1))
    places = make.op("Max", make.op("Add", ends, back), make.op("Range", zero, seq, one))
    places.name = POSITIONS
    copy_dtype(zero, places)
    return places
