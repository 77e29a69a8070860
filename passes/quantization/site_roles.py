"""What a linear layer is for, by what stands before and behind it.

    query_key_value    attention reads it as its query, which holds all three
    query_key, value   the same, where the value's product is one of its own:  query = Concat(query_key, value)
    query, key, value  attention reads it as that, perhaps normalized or rotated before
    output             its input is what attention made, perhaps gated
    down               its input is an activation of what other products made, element by element
    gate_up            such a product

In: products of a graph, before or after attention was lowered. Out: roles, for those that have one. No name is looked
at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import onnx_ir as ir

from llmc.compiler.graph.census import input_name
from llmc.compiler.graph.operators.microsoft import is_gated_silu
from llmc.compiler.graph.operators.token_wise import ELEMENTWISE

Role = Literal["query_key_value", "query_key", "query", "key", "value", "output", "down", "gate_up"]
ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention", "CachedAttention", "Attention"})
ACTIVATIONS = frozenset(
    {"Gelu", "QuickGelu", "Swish", "HardSwish", "Relu", "Elu", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Softplus"}
)
_LAYOUT = frozenset({"Reshape", "Transpose", "Cast", "Identity", "Squeeze", "Unsqueeze"})
_BEFORE_ATTENTION = _LAYOUT | {"Add", "Concat", "RMSNormalization", "LayerNormalization", "RotaryEmbedding"}
"""What a projection goes through until attention reads it: a bias, norms of heads, a rotation."""
_ELEMENTWISE = _LAYOUT | ELEMENTWISE | ACTIVATIONS | {"Split"}
_NAMES: dict[str, Role] = {"query": "query", "key": "key", "value": "value", "Q": "query", "K": "key", "V": "value"}


def find_roles(products: Iterable[ir.Node]) -> dict[ir.Node, Role]:
    """The role of each product with a weight that has one."""
    roles: dict[ir.Node, Role] = {}
    for node in products:
        if (role := _read_as(node)) is not None:
            roles[node] = role
            continue
        behind = list(_made_of(node.inputs[0]))
        if any(maker.op_type in ATTENTION for maker in behind):
            roles[node] = "output"
        elif any(maker.op_type in ACTIVATIONS or is_gated_silu(maker) for maker in behind):
            sources = [maker for maker in behind if _is_product(maker)]
            if sources:
                roles[node] = "down"
                roles |= dict.fromkeys((source for source in sources if source not in roles), "gate_up")
    return roles


def _read_as(node: ir.Node) -> Role | None:
    """What attention reads a product as."""
    pending: list[tuple[ir.Value, Role | None]] = [(node.outputs[0], None)]
    while pending:
        value, part = pending.pop()
        for use in value.uses():
            reader = use.node
            if reader.op_type in ATTENTION:
                name = _NAMES.get(input_name(reader, use.idx))
                packed = name == "query" and (len(reader.inputs) < 3 or reader.inputs[1] is None)
                return (part or "query_key_value") if packed else name
            if reader.op_type == "Concat":
                pending.append((reader.outputs[0], "value" if use.idx == len(reader.inputs) - 1 else "query_key"))
            elif reader.op_type in _BEFORE_ATTENTION:
                pending.append((reader.outputs[0], part))
    return None


def _made_of(value: ir.Value | None) -> Iterator[ir.Node]:
    """The nodes from which a value is computed element by element, as far as products and attention."""
    seen, pending = set[ir.Node](), [value]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node.op_type in _ELEMENTWISE or is_gated_silu(node):
            pending += node.inputs


def _is_product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and not node.domain and len(node.inputs) > 1
