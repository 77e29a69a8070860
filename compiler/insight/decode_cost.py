"""What one decoded token costs: floating-point operations, and bytes of KV cache.

In: an onnx_ir model, its weights still in their files. Out: :class:`DecodeCost`.

One row, one token. A multiplication and an addition are two operations; only matrix products and attention count,
which is all but a percent of a decoder:

    weights     2 x elements of every matrix that the token is multiplied with (of k experts, k)
    attention   2 x heads x (head_dim + value_head_dim) x tokens seen, the window at most
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.census import LOOK_UPS, MATRIX_PRODUCTS, constant_source, experts_chosen, named_inputs

DEFAULT_CONTEXT = 1024
"""Tokens in the cache for which attention is counted, unless the caller says otherwise."""

_PAST = re.compile(r"^past|past_key|past_value")
_WEIGHT_INPUT = {"Conv": 1, "CausalConvWithState": 1}
_PRODUCTS = MATRIX_PRODUCTS - {"MatMulNBits"}
#: By attention operator: the attributes with its query heads and its window.
ATTENTION: dict[tuple[str, str], tuple[str, str]] = {
    ("com.microsoft", "GroupQueryAttention"): ("num_heads", "local_window_size"),
    ("llmc", "CachedAttention"): ("num_heads", "window"),
    ("", "Attention"): ("q_num_heads", ""),
    ("com.microsoft", "MultiHeadAttention"): ("num_heads", ""),
}
#: The inputs, [batch, heads, tokens, width], that tell the widths of a key and of a value; the first pair that does.
_WIDTHS = (("past_key", "past_value"), ("key", "value"), ("K", "V"))


@dataclass(frozen=True)
class DecodeCost:
    """The cost of one decoded token of one row.

    Attributes:
        context: Tokens in the cache for which ``attention_flops`` holds.
        weight_flops: Operations of matrix products with constant matrices.
        attention_flops: Operations of attention over the cache.
        cache_bytes_per_token: Bytes that one token of one row takes in the KV cache, all layers; None where the
            graph's inputs do not tell.
        not_counted: What may compute more than nothing and could not be counted, one clause each.
    """

    context: int
    weight_flops: int
    attention_flops: int
    cache_bytes_per_token: int | None
    not_counted: tuple[str, ...]

    @property
    def flops(self) -> int:
        """All operations."""
        return self.weight_flops + self.attention_flops


def decode_cost(model: ir.Model, context: int = DEFAULT_CONTEXT) -> DecodeCost:
    """Count the operations of one token with ``context`` tokens in the cache."""
    weights = attention = 0
    unknown: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) in ATTENTION:
            flops = attention_flops(node, context)
            attention += flops or 0
        else:
            flops = product_flops(node)
            weights += flops or 0
            if flops == 0 and node.op_identifier() in model.functions and node.op_type not in LOOK_UPS:
                flops = None
        if flops is None:
            unknown[node.op_type] += 1
    clauses = tuple(f"{count} {name} whose sizes the graph does not state" for name, count in sorted(unknown.items()))
    return DecodeCost(context, weights, attention, cache_bytes_per_token(model.graph), clauses)


def cache_bytes_per_token(graph: ir.Graph) -> int | None:
    """Bytes that a token takes in the inputs ``past_…`` of shape [batch, heads, tokens, head_dim], all layers."""
    caches = [value for value in graph.inputs if _PAST.search(value.name or "") and len(value.shape or ()) == 4]
    total = 0.0
    for value in caches:
        shape, dtype = value.shape, value.dtype
        if shape is None or dtype is None or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            return None
        total += shape[1] * shape[3] * dtype.itemsize
    return math.ceil(total) if caches else None


def product_flops(node: ir.Node) -> int | None:
    """Operations of a product with a constant; 0 for any other operator, None where it cannot be told."""
    kind = node.op_type
    if kind == "MatMulNBits":
        return 2 * node.attributes.get_int("K", 0) * node.attributes.get_int("N", 0)
    if kind in _PRODUCTS:
        sizes = [size for operand in node.inputs[:2] if (size := _elements(operand)) is not None]
        return 2 * max(sizes) if sizes else None
    if kind in _WEIGHT_INPUT:
        size = _elements(node.inputs[_WEIGHT_INPUT[kind]])
        return None if size is None else 2 * size
    if kind in {"MoE", "QMoE"}:
        return _expert_flops(node)
    return 0


def _expert_flops(node: ir.Node) -> int | None:
    weights = [
        (name, value)
        for name, value in named_inputs(node).items()
        if value is not None and (name in {"fc1", "fc2"} or name.endswith("_experts_weights"))
    ]
    sizes = [size for _, matrix in weights if (size := _elements(matrix)) is not None]
    first = constant_source(weights[0][1]) if weights else None
    if first is None or first.shape is None or len(sizes) != len(weights) or not isinstance(first.shape[0], int):
        return None
    per_byte = 8 // node.attributes.get_int("expert_weight_bits", 4) if node.op_type == "QMoE" else 1
    chosen = experts_chosen(node)
    return None if chosen is None else 2 * per_byte * sum(sizes) * chosen // first.shape[0]


def _elements(value: ir.Value | None) -> int | None:
    """Elements of a constant matrix, None for anything else."""
    source = constant_source(value)
    if source is None:
        return None
    shape = source.const_value.shape if source.const_value is not None else source.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return math.prod(int(dim) for dim in shape if isinstance(dim, int))


def attention_window(node: ir.Node) -> int:
    """Tokens that a query of an attention operator sees at most; 0: all."""
    name = ATTENTION[node.domain, node.op_type][1]
    return max(0, node.attributes.get_int(name, 0)) if name else 0


def attention_flops(node: ir.Node, context: int) -> int | None:
    """Operations of one query of an operator of :data:`ATTENTION` with ``context`` tokens; None: not known."""
    heads_name = ATTENTION[node.domain, node.op_type][0]
    inputs = named_inputs(node)
    heads = node.attributes.get_int(heads_name, 0) or _dimension(node.inputs[0], 1)
    widths = [(_dimension(inputs.get(key), 3), _dimension(inputs.get(value), 3)) for key, value in _WIDTHS]
    known = [key + value for key, value in widths if key is not None and value is not None]
    if not heads or not known:
        return None
    window = attention_window(node)
    return 2 * heads * known[0] * (min(context, window) if window > 0 else context)


def _dimension(value: ir.Value | None, axis: int) -> int | None:
    """A dimension of a value of rank 4, None where it is not there or not a number."""
    shape = value.shape if value is not None else None
    size = shape[axis] if shape is not None and len(shape) == 4 else None
    return size if isinstance(size, int) else None
