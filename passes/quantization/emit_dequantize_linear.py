"""Weights of linear layers and tables as small numbers, in the form of the ONNX standard.

    MatMul(x, W)         →  MatMul(x, Transpose(DequantizeLinear(numbers [out, in], scales)))
    Gather(table, ids)   →  Gather(DequantizeLinear(numbers, scales), ids)

Numbers keep the checkpoint's layout, output features first: a tied table and projection are stored once, and rows are
quantized as they are read. TensorRT and OpenVINO keep such weights small inside the product; a runtime that does
not computes the floats first, with the same result. An offset that the numbers' type does not hold is added to the
product (:mod:`block_offsets`) for INT4; for UINT4 it comes off before the scale, as a zero point that is no whole
number, spelled out as DequantizeLinear has none such: Mul(Sub(Cast(numbers), zero points), scales). Whole zero points
are its third input, in the numbers' type; those of rows that would end within a byte are spelled out as well.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.quantized_weight import QuantizedPart, QuantizedWeight
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved
from llmc.passes.graph.graph_query import add_initializer, copy_dtype, small_initializer
from llmc.passes.quantization.block_offsets import add_offsets
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.sites import Site, require_blocks

_UINT4, _FLOAT4, _FLOAT8 = ir.DataType.UINT4, ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_NAMES = {ir.DataType.INT8: "int8", ir.DataType.INT4: "int4", _FLOAT8: "fp8", _FLOAT4: "nvfp4", _UINT4: "uint4"}
"""What initializers of numbers are called."""


def emit_dequantized_table(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A look-up of rows."""
    site.node.replace_input_with(0, _upright(emission, *site.weights[0], scheme))


def emit_dequantized_product(emission: Emission, site: Site, scheme: Scheme) -> None:
    """A product."""
    node, (name, weight) = site.node, site.weights[0]
    rows, features = weight.stored_shape
    upright = _upright(emission, name, weight, scheme)

    def transposed() -> ir.Value:
        node = ir.node("Transpose", [upright], {"perm": [1, 0]}, name=f"{name}/Transpose")
        return _output(emission, node, (features, rows), weight.dtype)

    turned = emission.once(weight, (scheme, "transposed"), transposed)
    if scheme.zero == "none" or scheme.storage == _UINT4:
        node.replace_input_with(1, turned)
        return
    block, output = scheme.block or features, node.outputs[0]
    product = ir.node("MatMul", [node.inputs[0], turned], name=node.name)
    product.outputs[0].shape = output.shape
    copy_dtype(output, product.outputs[0])
    solved = emission.quantized(name, weight, scheme)
    # Of means and not of sums: 32 large activations may add up to more than float16 holds.
    shape, by_mean = (rows, features // block), lambda rows: rows.zero_points() * block
    lazy = QuantizedPart(solved, "offsets", shape, weight.dtype, by_mean, transposed=True)
    offsets = add_initializer(emission.graph, f"{name}.offsets", lazy)
    new = [product, *add_offsets(emission.graph, node, product, offsets, block, means=True)]
    ir.convenience.replace_nodes_and_values(emission.graph, node, [node], new, [output], [new[-1].outputs[0]])


def _upright(emission: Emission, name: str, weight: LazyWeight, scheme: Scheme) -> ir.Value:
    """[out, in] dequantized."""
    require_blocks(weight.stored_shape[1], scheme.block)
    opsets = emission.graph.opset_imports
    opsets[""] = max(23 if scheme.storage == _FLOAT4 else 21, opsets.get("", 0))
    spelled_out = scheme.zero == "offset" or scheme.blocks(weight.stored_shape[1]) % 2
    make = _with_zero_points if scheme.storage == _UINT4 and spelled_out else _dequantized
    solved = emission.quantized(name, weight, scheme)
    return emission.once(weight, (scheme,), lambda: make(emission, name, solved))


def _dequantized(emission: Emission, name: str, solved: QuantizedWeight) -> ir.Value:
    scheme, graph, dtype = solved.scheme, emission.graph, solved.base.dtype
    rows, features = solved.base.stored_shape
    two_levels = scheme.storage == _FLOAT4
    shape = (rows,) if scheme.block is None else (rows, features // scheme.block)
    lazy = QuantizedPart(solved, "scales", shape, _FLOAT8 if two_levels else dtype, lambda rows: rows.scales)
    scales = add_initializer(graph, f"{name}.scales", lazy)
    if two_levels:
        lazy = QuantizedPart(solved, "matrix scale", (), dtype, lambda rows: np.asarray(rows.matrix_scale))
        matrix = add_initializer(graph, f"{name}.matrix_scale", lazy)
        scales = _output(emission, ir.node("DequantizeLinear", [scales, matrix], name=f"{name}/scales"), shape, dtype)
    numbers = add_initializer(graph, f"{name}.{_NAMES[scheme.storage]}", solved.numbers())
    attributes = {"axis": 0} if scheme.block is None else {"axis": 1, "block_size": scheme.block}
    inputs = [numbers, scales]
    if scheme.zero == "integer":
        lazy = QuantizedPart(solved, "zero_points", shape, scheme.storage, lambda rows: rows.zero_points())
        inputs.append(add_initializer(graph, f"{name}.zero_points", lazy))
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear")
    return _output(emission, node, (rows, features), dtype)


def _with_zero_points(emission: Emission, name: str, solved: QuantizedWeight) -> ir.Value:
    """Blocks are an axis of their own, along which zero points and scales are broadcast."""
    scheme, graph, dtype = solved.scheme, emission.graph, solved.base.dtype
    rows, features = solved.base.stored_shape
    blocks, middle = scheme.blocks(features), np.float32(2 ** (scheme.bits - 1))
    shape = (rows, blocks, features // blocks)
    numbers = QuantizedPart(solved, "numbers", shape, scheme.storage, lambda rows: rows.levels)
    value = add_initializer(graph, f"{name}.uint4", numbers)
    value = _output(emission, ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}/Cast"), shape, dtype)

    def points(rows: Solved) -> Array:
        zeros = rows.zero_points()
        return zeros.astype(np.float32) if scheme.zero == "integer" else middle - zeros / rows.scales

    for operator, part, function in (
        ("Sub", "zero_points", points),
        ("Mul", "scales", lambda rows: rows.scales),
    ):
        lazy = QuantizedPart(solved, part, (rows, blocks, 1), dtype, function)
        operand = add_initializer(graph, f"{name}.{part}", lazy)
        value = _output(emission, ir.node(operator, [value, operand], name=f"{name}/{operator}"), shape, dtype)
    flat = small_initializer(graph, f"shape_{rows}_{features}", np.asarray((rows, features), np.int64))
    return _output(emission, ir.node("Reshape", [value, flat], name=f"{name}/Reshape"), (rows, features), dtype)


def _output(emission: Emission, node: ir.Node, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    emission.first.append(node)
    value = node.outputs[0]
    value.shape, value.dtype = ir.Shape(shape), dtype
    return value
