"""Weights in blocks of integers, as operators of ONNX Runtime read them.

MatMul(x, W) (+ b)            →  com.microsoft::MatMulNBits(x, packed, scales, zero points, b)
Gather(table, ids)            →  com.microsoft::GatherBlockQuantized(packed, ids, scales, zero points)
MatMul(x, W) with offsets     →  MatMulNBits(x, …) + MatMul(sums of x by block, offsets), or by means (block_offsets)
MatMul(x, Transpose(table))   →  MatMulNBits over the same packed bytes: a tied table is stored once
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.operators.microsoft import GATHER_QUANTIZED, MATMUL_NBITS
from llmc.compiler.graph.quantized_weight import QuantizedPart
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import pack
from llmc.passes.graph.graph_query import add_initializer, replace_node
from llmc.passes.quantization.block_offsets import add_offsets
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.sites import Site, require_blocks


def emit_matmul_nbits(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A product; its last block may be shorter, unless blocks have offsets."""
    node, (name, weight) = site.node, site.weights[0]
    height, features = weight.stored_shape
    block = scheme.block or features
    if scheme.zero == "offset":
        require_blocks(features, block, "{} input features are")
    parts = packed_parts(emission, name, weight, scheme, (height, scheme.blocks(features), block * scheme.bits // 8))
    attributes = {"K": features, "N": height, "bits": scheme.bits, "block_size": block}
    attributes["accuracy_level"] = emission.accuracy_level

    def make(bias: ir.Value | None) -> list[ir.Node]:
        inputs = {"A": node.inputs[0], "B": parts["packed"], "scales": parts["scales"], "bias": bias}
        inputs["zero_points"] = parts.get("zero_points")
        product = MATMUL_NBITS.make(inputs, attributes, name=node.name)
        if scheme.zero != "offset":
            return [product]
        means = emission.offsets_by_mean
        return [product, *add_offsets(emission.graph, node, product, parts["offsets"], block, means=means)]

    emission.replace_product(node, make)


def emit_gather_block_quantized(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A look-up of rows."""
    node, (name, weight) = site.node, site.weights[0]
    rows, width = weight.stored_shape
    require_blocks(width, scheme.block, "its width {} is")
    parts = packed_parts(emission, name, weight, scheme, (rows, width * scheme.bits // 8))
    inputs = {"data": parts["packed"], "indices": node.inputs[1], "scales": parts["scales"]}
    inputs["zero_points"] = parts.get("zero_points")
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": scheme.block, "bits": scheme.bits}
    new = GATHER_QUANTIZED.make(inputs, attributes, name=node.name)
    replace_node(node, [new], new.outputs)


def packed_parts(
    emission: Emission, stem: str, weight: LazyWeight, scheme: Scheme, packed_shape: tuple[int, ...]
) -> dict[str, ir.Value]:
    """Initializers ``packed``, ``scales`` and, where the scheme has them, ``zero_points`` or ``offsets``.

    Args:
        emission: Of the graph.
        stem: The site's name, with which theirs begin.
        weight: [out, in], or a stack of such matrices.
        scheme: Of the form ``nbits``.
        packed_shape: How the operator sees the bytes of the integers.
    """
    solved, bits = emission.quantized(stem, weight, scheme), scheme.bits
    *heights, features = weight.stored_shape
    shape, uint8, dtype = (*heights, scheme.blocks(features)), ir.DataType.UINT8, weight.dtype
    parts = [
        QuantizedPart(solved, "packed", packed_shape, uint8, lambda rows: pack(rows.levels, bits)),
        QuantizedPart(solved, "scales", shape, dtype, lambda rows: rows.scales),
    ]
    if scheme.zero == "integer":
        packed = (*heights, -(-shape[-1] * bits // 8))
        parts.append(QuantizedPart(solved, "zero_points", packed, uint8, lambda rows: pack(rows.zero_points(), bits)))
    elif scheme.zero == "offset":
        # [blocks, out] in the graph.
        times = np.float32(scheme.block or 1) if emission.offsets_by_mean else np.float32(1)
        offsets = QuantizedPart(
            solved, "offsets", shape, dtype, lambda rows: rows.zero_points() * times, transposed=True
        )
        parts.append(offsets)
    return emission.once(
        weight,
        (scheme, packed_shape),
        lambda: {lazy.part: add_initializer(emission.graph, f"{stem}.{lazy.part}", lazy) for lazy in parts},
    )
