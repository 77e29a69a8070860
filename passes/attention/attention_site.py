"""Where a layer computes attention over its cache, found by following keys, values, query and output through layouts.

In: a layer's keys, appended to the cache. Out: :class:`AttentionSite`, the values at which its arithmetic is cut.

    past_key ─Concat─ layout ─┐                          past_value ─Concat─ layout ─┐
    query ─── layout ─────── MatMul ─▶ whatever it computes: scale, masks, softmax ─▶ MatMul ─ layout ─▶ output

What lies between is not looked at here; :mod:`llmc.passes.attention.measure_attention` finds out what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from llmc.compiler.base.contract import PAST, PRESENT
from llmc.passes.graph.graph_query import constant, dims, only_consumer, producer
from llmc.passes.graph_pass import NearMiss

MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Identity"})
"""Operators that change nothing but the layout or the type."""
SPREADS = MOVES | {"Expand", "Tile", "Split", "Slice", "Gather"}
"""Operators that copy or take apart; keys and values may go through them on their way to a product."""
PRODUCTS = frozenset({"MatMul", "Einsum"})

Kind = Literal["merged", "heads_first", "heads_second"]


@dataclass(frozen=True)
class Heads:
    """A tensor with heads.

    Attributes:
        value: The tensor.
        kind: [batch, seq, heads x dim], [batch, heads, seq, dim] or [batch, seq, heads, dim].
        count: Number of heads.
    """

    value: ir.Value
    kind: Kind
    count: int


@dataclass(frozen=True)
class AttentionSite:
    """The values at which a layer's attention is cut.

    Attributes:
        key, value: The nodes that append the chunk's keys and values to the past; heads first.
        query: Before anything but layouts and constant factors.
        output: After the last layout.
        kv_heads: Heads of keys and values.
        key_dim, value_dim: Their sizes.
        product: The node where queries and keys meet.
    """

    key: ir.Node
    value: ir.Node
    query: Heads
    output: Heads
    kv_heads: int
    key_dim: int
    value_dim: int
    product: ir.Node


def appended_keys(model: ir.Model) -> list[ir.Node]:
    """The nodes that append keys to the past of a layer, where that makes the layer's present."""
    named = [(output, output.name or "") for output in model.graph.outputs]
    keys = [output for output, name in named if name.startswith(PRESENT) and name.endswith(".key")]
    return [node for output in keys if (node := _appending(output)) is not None]


def _appending(output: ir.Value) -> ir.Node | None:
    current = output
    while (node := current.producer()) is not None and node.op_type in {"Identity", "Cast"} and not node.domain:
        source = node.inputs[0]
        assert source is not None
        current = source
    node = producer(current, "Concat")
    past = node.inputs[0] if node is not None and len(node.inputs) == 2 else None
    expected = PAST + (output.name or "").removeprefix(PRESENT)
    return node if past is not None and past.is_graph_input() and past.name == expected else None


def find_site(model: ir.Model, key: ir.Node) -> AttentionSite:
    """The attention that uses the keys of ``key``.

    Raises:
        NearMiss: it cannot be cut out.
    """
    past = key.inputs[0]
    assert past is not None
    name = (past.name or "").removeprefix(PAST).removesuffix(".key")
    output = next((v for v in model.graph.outputs if v.name == f"{PRESENT}{name}.value"), None)
    value = _appending(output) if output is not None else None
    if value is None:
        raise NearMiss("no values are appended to the cache beside the keys")
    batch, kv_heads, seq, key_dim = _chunk_shape(key)
    value_dim = _chunk_shape(value)[3]
    product, position = _product(key.outputs[0], "keys")
    mixed, _ = _product(value.outputs[0], "values")
    if mixed is product:
        raise NearMiss("its keys and its values meet in one product")
    scaled = product.inputs[1 - position]
    query = _query(scaled, batch, seq, key_dim)
    attended = _output(mixed.outputs[0], batch, seq, value_dim)
    if query is None or attended is None:
        what = "query" if query is None else "output"
        raise NearMiss(f"no value with heads and a sequence is found on the way of its {what}")
    if query.count != attended.count or query.count % kv_heads:
        raise NearMiss(
            f"it has {query.count} heads of queries, {attended.count} of outputs and {kv_heads} of keys and values"
        )
    types = {heads.value.dtype for heads in (query, attended)} | {key.outputs[0].dtype}
    if len(types - {None}) > 1:
        raise NearMiss("its query, its cache and its output have different types")
    return AttentionSite(key, value, query, attended, kv_heads, key_dim, value_dim, product)


def _chunk_shape(node: ir.Node) -> tuple[str | int, int, str | int, int]:
    """Of the chunk's own keys or values: batch, heads, sequence, width."""
    shape = dims(node.inputs[1])
    if shape is None or len(shape) != 4 or node.attributes.get_int("axis", 0) not in {2, -2}:
        raise NearMiss("its cache is not [batch, heads, tokens, width]")
    batch, heads, seq, width = shape
    if not (isinstance(heads, int) and isinstance(width, int)) or batch is None or seq is None:
        raise NearMiss("the number or the width of its heads is not known")
    return batch, heads, seq, width


def _product(start: ir.Value, what: str) -> tuple[ir.Node, int]:
    """The one matrix product that a value reaches through layouts, and which operand it is there."""
    found: dict[ir.Node, int] = {}
    stack = [start]
    while stack:
        for node, index in stack.pop().uses():
            if node.domain:
                continue
            if node.op_type in PRODUCTS:
                found[node] = index
            elif (node.op_type in SPREADS and index == 0) or factor_of(node, index) is not None:
                stack.extend(node.outputs)
    if len(found) != 1:
        raise NearMiss(f"its {what} meet {len(found)} matrix products")
    ((node, index),) = found.items()
    if len(node.inputs) != 2:
        raise NearMiss(f"its {what} meet a product of {len(node.inputs)} operands")
    return node, index


def factor_of(node: ir.Node, index: int) -> float | None:
    """The constant by which ``node`` multiplies its operand ``index``."""
    if node.op_type not in {"Mul", "Div"} or (node.op_type == "Div" and index == 1):
        return None
    other = constant(node.inputs[1 - index])
    if other is None or other.size != 1:
        return None
    number = float(other.reshape(-1)[0])
    return number if node.op_type == "Mul" else 1.0 / number


def _heads(value: ir.Value, batch: str | int, seq: str | int, width: int) -> Heads | None:
    shape: Sequence[str | int | None] = dims(value) or ()
    match list(shape):
        case [b, s, int(merged)] if (b, s) == (batch, seq) and merged % width == 0:
            return Heads(value, "merged", merged // width)
        case [b, int(heads), s, w] if (b, s, w) == (batch, seq, width):
            return Heads(value, "heads_first", heads)
        case [b, s, int(heads), w] if (b, s, w) == (batch, seq, width):
            return Heads(value, "heads_second", heads)
    return None


def _query(start: ir.Value | None, batch: str | int, seq: str | int, width: int) -> Heads | None:
    """The highest value with heads above an operand of the product."""
    best, current = None, start
    while current is not None:
        best = _heads(current, batch, seq, width) or best
        node = current.producer()
        if node is None or node.domain:
            break
        if node.op_type in MOVES:
            current = node.inputs[0]
        else:
            scaled = [i for i in range(len(node.inputs)) if factor_of(node, i) is not None]
            current = node.inputs[scaled[0]] if len(scaled) == 1 else None
    return best


def _output(start: ir.Value, batch: str | int, seq: str | int, width: int) -> Heads | None:
    """The lowest value with heads below the product."""
    best, current = None, start
    while True:
        best = _heads(current, batch, seq, width) or best
        node = only_consumer(current)
        if node is None or node.domain or node.op_type not in MOVES or node.inputs[0] is not current:
            return best
        current = node.outputs[0]
