"""Stacked experts' weights in the layouts that ONNX Runtime's operators read.

In: an initializer [experts, …] of ``llmc::MoE`` or ``com.microsoft::MoE``.
Out: initializers that are rearranged or quantized; nothing is read, and one expert at a time when they are written.

    halves of rows [gate … | up …]   →  alternating rows [gate 0, up 0, gate 1, up 1, …]
    [experts, in, out]               →  [experts, out, in]
    MoE(x, probs, fc1, fc2)          →  QMoE(x, probs, packed, scales, packed, scales, zero points)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import MAPPED_CHUNK_BYTES, LazyWeight, MappedWeight
from llmc.passes.formats.block_quantization import BlockFormat
from llmc.passes.graph.graph_query import add_initializer, replace_node
from llmc.passes.graph.linear import upright_weight
from llmc.passes.graph_pass import NearMiss

Array = npt.NDArray[Any]
DOMAIN = "com.microsoft"


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

    key = ("experts", "transpose" if transpose else "", "interleave" if interleave else "")
    made = MappedWeight(base, shape, base.dtype, rearrange, key)
    return add_initializer(graph, f"{_stem(value)}.by_output", made)


def quantize_experts(graph: ir.Graph, node: ir.Node, fmt: BlockFormat, accuracy_level: int) -> None:
    """Replace a com.microsoft::MoE, whose inputs 2 and 4 are the matrices and 3 and 5 their biases, by QMoE.

    Raises:
        NearMiss: the experts are not the runtime's operator, or their widths are no multiples of the block size.
    """
    if node.domain != DOMAIN:
        raise NearMiss("they run as the operator's body, which computes with floats")
    if fmt.offset:
        # The operator knows none; a zero point costs nothing and errs less than symmetric blocks.
        fmt = replace(fmt, symmetric=False, offset=False)
    x, probs, fc1, fc1_bias, fc2, fc2_bias = [*node.inputs, None][:6]
    matrices = [(value, upright_weight(value)) for value in (fc1, fc2) if value is not None]
    odd = [weight.stored_shape[2] for _, weight in matrices if weight.stored_shape[2] % fmt.block_size]
    if odd:
        raise NearMiss(f"{odd[0]} input features are no multiple of the block size {fmt.block_size}")
    one, two = (_blocks(graph, _stem(value), weight, fmt) for value, weight in matrices)
    inputs = [x, probs, one["packed"], one["scales"], fc1_bias, two["packed"], two["scales"], fc2_bias]
    inputs += [None, None, None, one.get("zero_points"), two.get("zero_points")]
    while inputs[-1] is None:
        inputs.pop()
    new = ir.node("QMoE", inputs, dict(node.attributes), domain=DOMAIN, name=node.name)
    given = {"expert_weight_bits": fmt.bits, "block_size": fmt.block_size, "accuracy_level": accuracy_level}
    for name, number in {**given, "weights_prepacked": 0}.items():
        new.attributes[name] = ir.AttrInt64(name, number)
    replace_node(node, [new], new.outputs)


def _blocks(graph: ir.Graph, stem: str, weight: LazyWeight, fmt: BlockFormat) -> dict[str, ir.Value]:
    """[experts, out, in] as packed integers and, by blocks of ``in``, scales and the format's zero points."""
    count, rows, features = weight.stored_shape
    blocks, uint8 = features // fmt.block_size, ir.DataType.UINT8
    parts: dict[str, tuple[int, ir.DataType, Callable[[Array], Array]]] = {
        "packed": (features * fmt.bits // 8, uint8, fmt.pack),
        "scales": (blocks, weight.dtype, fmt.scales),
    }
    if not fmt.symmetric:
        parts["zero_points"] = (math.ceil(blocks * fmt.bits / 8), uint8, fmt.packed_zero_points)
    made = {}
    for name, (width, dtype, function) in parts.items():
        lazy = MappedWeight(weight, (count, rows, width), dtype, _by_rows(function), ("experts", name, fmt))
        made[name] = add_initializer(graph, f"{stem}.{name}", lazy)
    return made


def _by_rows(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """``function`` of the rows of all matrices, few at a time: what it makes on the way may be large."""

    def compute(experts: Array) -> Array:
        rows = experts.reshape(-1, experts.shape[-1])
        step = max(1, MAPPED_CHUNK_BYTES // (4 * rows.shape[1]))
        return np.concatenate([function(rows[i : i + step]) for i in range(0, len(rows), step)])

    return compute


def _stem(value: ir.Value) -> str:
    return (value.name or "experts").removesuffix(".weight").removesuffix(".by_output")
