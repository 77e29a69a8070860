"""Weights in packed numbers, as llmc's own operators read them; each call comes with its body.

MatMul(x, W)                  →  llmc::MatMulNBits(x, low plane, scales, zero points, high plane, row scales)
Gather(table, ids)            →  llmc::GatherNBits(ids, …)
MatMul(x, Transpose(table))   →  llmc::MatMulNBits over the same parts: a tied table is stored once

A product's body is in ONNX Runtime's operators, which keep its weights small where llmc's kernels cannot run.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.operators import nbits, nbits_runtime
from llmc.compiler.graph.operators.signature import Signature
from llmc.compiler.graph.quantized_weight import QuantizedPart
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved, high_plane, low_bits, low_plane
from llmc.passes.graph.graph_query import add_initializer, replace_node
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.sites import Site


def emit_packed_product(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A product; what is added to it stays behind it."""
    bits = site.placement(emission.plan).activation_bits
    attributes = {} if bits == nbits.ACTIVATION_BITS else {"activation_bits": bits}
    call = _call(emission, site, scheme, nbits.MATMUL, site.node.inputs[0], attributes)
    runtime = nbits_runtime.RuntimeVariant(nbits.variant_of(call), emission.accuracy_level)
    _replace(emission, site.node, call, nbits_runtime.function(runtime))


def emit_packed_table(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A look-up of rows."""
    call = _call(emission, site, scheme, nbits.GATHER, site.node.inputs[1], {})
    _replace(emission, site.node, call, nbits.function(nbits.variant_of(call)))


def _call(
    emission: Emission,
    site: Site,
    scheme: Scheme,
    operator: Signature,
    read: ir.Value | None,
    attributes: dict[str, int],
) -> ir.Node:
    name, weight = site.weights[0]
    rows, features = weight.stored_shape
    sizes = {"K": features, "N": rows, "bits": scheme.bits, "block_size": scheme.block}
    inputs = {operator.inputs[0]: read, **packed_parts(emission, name, weight, scheme)}
    return operator.make(inputs, {**sizes, **attributes}, name=site.node.name)


def _replace(emission: Emission, old: ir.Node, call: ir.Node, body: ir.Function) -> None:
    call.overload = body.overload
    emission.functions.setdefault(body.identifier(), body)
    replace_node(old, [call], call.outputs)


def packed_parts(emission: Emission, stem: str, weight: LazyWeight, scheme: Scheme) -> dict[str, ir.Value]:
    """Initializers by the names of the operators' inputs.

    Args:
        emission: Of the graph.
        stem: The site's name, with which theirs begin.
        weight: [out, in].
        scheme: Of the form ``packed``.
    """
    solved, (rows, features) = emission.quantized(stem, weight, scheme), weight.stored_shape
    bits, low, blocks = scheme.bits, low_bits(scheme.bits), scheme.blocks(features)
    size, uint8 = scheme.block or features, ir.DataType.UINT8
    parts = [
        QuantizedPart(
            solved, "weight", (rows, blocks, size * low // 8), uint8, lambda part: low_plane(part.levels, bits)
        ),
        QuantizedPart(solved, "scales", (rows, blocks), uint8, lambda part: part.scales),
        QuantizedPart(solved, "row_scales", (rows,), ir.DataType.FLOAT, _row_scales),
    ]
    if scheme.zero != "none":
        parts.append(QuantizedPart(solved, "zero_points", (rows, blocks), uint8, lambda part: part.zero_points()))
    if low < bits:
        shape = (rows, blocks, size * (bits - low) // 8)
        parts.append(QuantizedPart(solved, "high", shape, uint8, lambda part: high_plane(part.levels, bits)))
    # As a weight of floats may be called, too.
    names = {"weight": "packed"}
    return emission.once(
        weight,
        (scheme,),
        lambda: {
            lazy.part: add_initializer(emission.graph, f"{stem}.{names.get(lazy.part, lazy.part)}", lazy)
            for lazy in parts
        },
    )


def _row_scales(solved: Solved) -> Array:
    assert solved.row_scales is not None
    return solved.row_scales
