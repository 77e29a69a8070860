"""Bytes of weights that one decode step reads.

In: a graph. Out: the size of all initializers that a step of one row reads. Tables that are only looked up in count
as nothing, since one row of them is read; of a layer's experts count those that a token has, k of all.
"""

from __future__ import annotations

from fractions import Fraction

import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.operators import moe
from llmc.passes.graph.graph_query import dims

LOOKUPS = {"Gather", "GatherBlockQuantized"}
ROTARY_INPUTS = {"GroupQueryAttention": (7, 8), "CachedAttention": (6, 7)}
EXPERTS = {"MoE", "QMoE"}
FIRST_OF_EXPERTS = 2
"""The runtime's operators and llmc's have what is not by expert before this input, or no initializers there."""


def decode_weight_bytes(model: ir.Model) -> int:
    """Bytes per decode step; the same bytes under two names count once."""
    sizes: dict[object, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        share = max((_share_read(use.node, use.idx) for use in value.uses()), default=Fraction(0))
        if tensor is None or not share:
            continue
        key = tensor.identity() if isinstance(tensor, LazyWeight) else id(tensor)
        sizes[key] = max(sizes.get(key, 0), int(tensor.nbytes * share))
    return sum(sizes.values())


def _share_read(node: ir.Node, index: int) -> Fraction:
    """How much of input ``index`` a step reads."""
    if node.op_type in LOOKUPS or index in ROTARY_INPUTS.get(node.op_type, ()):
        return Fraction(0)
    if node.op_type in EXPERTS and index >= FIRST_OF_EXPERTS:
        chosen, experts = _experts_of(node, index)
        if chosen is not None and experts is not None:
            return Fraction(min(chosen, experts), experts)
    return Fraction(1)


def _experts_of(node: ir.Node, index: int) -> tuple[int | None, int | None]:
    """How many experts a token has, and how many there are, which is the length of any of their weights."""
    shape, indices = dims(node.inputs[index]), node.inputs[moe.INPUTS.index("indices")]
    chosen = (dims(indices) or [None])[-1] if moe.is_moe(node) else node.attributes.get_int("k", 1)
    count = shape[0] if shape else None
    return chosen if isinstance(chosen, int) else None, count if isinstance(count, int) else None
