"""Quantized products as both of ONNX Runtime's and of llmc's packed operator make them, seen as one.

In: a node. Out: :class:`PackedCall`, whose inputs and attributes have the names that llmc's CPU operator gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu, nbits
from llmc.compiler.graph.operators.microsoft import MATMUL_NBITS
from llmc.passes.graph.graph_query import is_weight
from llmc.passes.graph_pass import NearMiss

DEFAULTS = {"K": 0, "N": 0, "bits": 4, "block_size": 0}
"""Attributes of both operators, and what com.microsoft's has where one is absent."""


@dataclass(frozen=True)
class PackedCall:
    """A product with a weight in integers.

    Attributes:
        x: What is multiplied.
        inputs: Parts of the weight, and the bias.
        attributes: Sizes, and bits of activations where they are not the usual ones.
        coded: Whether scales and zero points are codes.
    """

    x: ir.Value | None
    inputs: Mapping[str, ir.Value | None]
    attributes: Mapping[str, int]
    coded: bool


def is_packed_call(node: ir.Node | None) -> bool:
    """Whether a node is such a product."""
    return MATMUL_NBITS.is_call(node) or nbits.MATMUL.is_call(node)


def packed_call(node: ir.Node) -> PackedCall:
    """A product that the CPU operator takes.

    Raises:
        NearMiss: it does not take such a weight.
    """
    sizes = {name: node.attributes.get_int(name, DEFAULTS[name]) for name in DEFAULTS}
    coded = nbits.MATMUL.is_call(node)
    if (reason := cpu.refused_format(sizes["bits"], sizes["block_size"], coded=coded)) is not None:
        raise NearMiss(reason)
    return _coded(node, sizes) if coded else _scaled(node, sizes)


def _coded(node: ir.Node, sizes: dict[str, int]) -> PackedCall:
    parts = {name: nbits.MATMUL.get(node, name) for name in nbits.WEIGHT_INPUTS}
    require_constants(parts)
    bits = node.attributes.get_int("activation_bits", nbits.ACTIVATION_BITS)
    more = {} if bits == nbits.ACTIVATION_BITS else {"activation_bits": bits}
    return PackedCall(nbits.MATMUL.get(node, "a"), parts, {**sizes, **more}, coded=True)


def _scaled(node: ir.Node, sizes: dict[str, int]) -> PackedCall:
    given = MATMUL_NBITS.arguments(node)
    if given["g_idx"] is not None:
        raise NearMiss(f"{cpu.DOMAIN} takes no group index")
    parts = {"weight": given["B"], "scales": given["scales"], "zero_points": given["zero_points"]}
    require_constants(parts)
    zeros = given["zero_points"]
    if zeros is not None and zeros.dtype not in {None, ir.DataType.UINT8}:
        raise NearMiss(f"{cpu.DOMAIN} takes zero points that are integers")
    return PackedCall(given["A"], {**parts, "bias": given["bias"]}, sizes, coded=False)


def require_constants(parts: Mapping[str, ir.Value | None]) -> None:
    """Refuse weights that are computed: they are packed when a session is made.

    Raises:
        NearMiss: a part is no constant.
    """
    if not all(value is None or is_weight(value) for value in parts.values()):
        raise NearMiss(f"{cpu.DOMAIN} takes weights that are constants")
