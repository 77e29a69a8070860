"""Stacked experts' weights in the layouts that ONNX Runtime's operators read.

In: an initializer [experts, …] of ``llmc::MoE`` or ``com.microsoft::MoE``.
Out: initializers that are rearranged; nothing is read, and one expert at a time when they are written.

    halves of rows [gate … | up …]   →  alternating rows [gate 0, up 0, gate 1, up 1, …]
    [experts, in, out]               →  [experts, out, in]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import MappedWeight
from llmc.passes.graph.graph_query import add_initializer
from llmc.passes.graph.linear import upright_weight

Array = npt.NDArray[Any]


def rearranged(graph: ir.Graph, value: ir.Value, *, transpose: bool, interleave: bool) -> ir.Value:
    """``value`` with its last two axes swapped, and then rows of the halves of axis 1 alternating, where asked for.

    Args:
        graph: Gets a new initializer; none when nothing is asked for.
        value: Initializer [experts, rows, features], or [experts, rows], of which only rows can alternate.
        transpose: Swap the last two axes.
        interleave: Let the rows of the two halves alternate.
    """
    if not transpose and not interleave:
        return value
    base = upright_weight(value)
    count, *axes = base.stored_shape
    shape = (count, *(axes[::-1] if transpose else axes))

    def rearrange(experts: Array) -> Array:
        turned = experts.swapaxes(1, 2) if transpose else experts
        if not interleave:
            return turned
        halves = turned.reshape(len(experts), 2, shape[1] // 2, *shape[2:])
        return np.ascontiguousarray(halves.swapaxes(1, 2))

    stem = (value.name or "experts").removesuffix(".weight").removesuffix(".by_output")
    key = ("experts", "transpose" if transpose else "", "interleave" if interleave else "")
    made = MappedWeight(base, shape, base.dtype, rearrange, key)
    return add_initializer(graph, f"{stem}.by_output", made)
