"""Weights of linear layers as 8-bit floats with a scale per block of input features; activations stay half precision.

MatMul(x, W) (+ b)   →   com.microsoft::MatMulBlockQuantizedFp8Weight(x, W as float8e4m3 [out, in], scales, b)
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import MATMUL_FP8
from llmc.compiler.graph.quantized_weight import QuantizedPart
from llmc.compiler.quantization.scheme import Scheme
from llmc.passes.graph.graph_query import add_initializer
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.sites import Site, require_blocks


def emit_fp8_product(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A product; a tied output projection becomes a table of its own, half as large as the embedding."""
    node, (name, weight) = site.node, site.weights[0]
    rows, features = weight.stored_shape
    require_blocks(features, scheme.block)
    solved, shape = emission.quantized(name, weight, scheme), (rows, scheme.blocks(features))
    numbers = add_initializer(emission.graph, f"{name}.fp8", solved.numbers())
    lazy = QuantizedPart(solved, "scales", shape, ir.DataType.FLOAT, lambda rows: rows.scales)
    scales = add_initializer(emission.graph, f"{name}.fp8_scales", lazy)

    def make(bias: ir.Value | None) -> list[ir.Node]:
        inputs = {"A": node.inputs[0], "B": numbers, "b_scale": scales, "bias": bias}
        return [MATMUL_FP8.make(inputs, {"block_size": scheme.block}, name=node.name)]

    emission.replace_product(node, make)
