"""Keys and values about a centre of their own, with the same attention.

    softmax(q · (k - c)) = softmax(q · k): every slot's score changes by q · c, the same for all slots
    sum w (v - c) = sum w v - c, as the weights w of the slots add up to 1

        q, k, v → GroupQueryAttention     →     q, k + R⁻¹(-c), v - c' → GroupQueryAttention → + c'

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
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION as ATTENTION
from llmc.passes.graph.chunk_lengths import find_value
from llmc.passes.graph.graph_query import copy_dtype, dims, take_place
from llmc.passes.graph.node_builder import NodeBuilder
from llmc.passes.quantization.rotary_pairs import RotaryPairs

Array = npt.NDArray[Any]
POSITIONS = "cache_positions"


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
    graph.insert_before(node, make.nodes)
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


def _add_back(node: ir.Node, centres: Array) -> None:
    """What attention makes has the centre of the values in it again, each head that of its group."""
    graph, output, query = node.graph, node.outputs[0], ATTENTION.get(node, "query")
    assert graph is not None
    assert query is not None
    assert query.dtype is not None
    group = node.attributes.get_int("num_heads", 0) // len(centres)
    make = NodeBuilder(graph, f"{node.name}/centre_back")
    whole = np.repeat(centres, group, axis=0).reshape(-1).astype(query.dtype.numpy())
    total = make.op("Add", output, make.constant("values", whole))
    output.dtype = query.dtype
    take_place(output, total)
    make.nodes[0].replace_input_with(0, output)
    output.type, output.shape = total.type, total.shape
    graph.insert_after(node, make.nodes)


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
    graph.insert_before(node, make.nodes)
    return rows


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
