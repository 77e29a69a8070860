"""Bytes of weights that one decode step reads.

In: a graph. Out: the size of every initializer that a step reads whole; tables that are only looked up in count as
nothing, since one row of them is read.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.lazy_weight import LazyWeight

LOOKUPS = {"Gather", "GatherBlockQuantized"}
ROTARY_INPUTS = {"GroupQueryAttention": (7, 8), "CachedAttention": (6, 7)}


def decode_weight_bytes(model: ir.Model) -> int:
    """Bytes per decode step; the same bytes under two names count once."""
    sizes: dict[object, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not _is_read_whole(value):
            continue
        key = tensor.identity() if isinstance(tensor, LazyWeight) else id(tensor)
        sizes[key] = tensor.nbytes
    return sum(sizes.values())


def _is_read_whole(value: ir.Value) -> bool:
    for use in value.uses():
        looked_up = use.node.op_type in LOOKUPS
        rotary = use.idx in ROTARY_INPUTS.get(use.node.op_type, ())
        if not looked_up and not rotary:
            return True
    return False
