"""``llmc::MatMulNBits`` in ONNX Runtime's own operators: what its CPU provider runs without llmc's kernels.

    a · wᵀ  =  com.microsoft::MatMulNBits(a, low plane, scales)
               +  com.microsoft::MatMulNBits(a, high plane, 2^low · scales)
               +  MatMul(sums of a by block, (2^(bits-1) - zero) · scales)

The body in standard operators (:mod:`.nbits`) leaves a matrix of floats to whoever folds it when a session is made:
four bytes a weight, and all that lies between. Here planes stay as they are, but for a high one of single bits, which
become two; what else is folded is a few floats for a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators import microsoft, nbits
from llmc.compiler.graph.operators.domain import Body
from llmc.compiler.quantization.solver import low_bits

_HIGH_BITS = 2
"""Of a number of a high plane as ONNX Runtime's operator reads it."""


@dataclass(frozen=True)
class RuntimeVariant:
    """What decides the body.

    Attributes:
        variant: Of the operator.
        accuracy_level: Of ONNX Runtime's: 4 rounds activations to 8 bits.
    """

    variant: nbits.Variant
    accuracy_level: int = 4

    @property
    def overload(self) -> str:
        """Name of the variant: ``q4_zero_ort4``."""
        return f"{self.variant.overload}_ort{self.accuracy_level}"


def function(runtime: RuntimeVariant) -> ir.Function:
    """The body of a product."""
    variant, body = runtime.variant, Body(nbits.MATMUL.inputs)
    bits, low = variant.bits, low_bits(variant.bits)
    by_row = body.op("Unsqueeze", body["row_scales"], body.integers(-1))
    scales = body.op("Mul", nbits.as_float(body, body["scales"]), by_row)
    if low == bits:
        output = _product(body, runtime, low, body["weight"], scales)
    else:
        # Around the middle of all levels, as activations that are rounded err least: nothing comes off the low bits,
        # the upper half of the range off the high ones.
        high = body["high"] if bits - low == _HIGH_BITS else _twice_as_wide(body, body["high"])
        middle = 2 ** (bits - low - 1)
        output = _product(body, runtime, low, body["weight"], scales, 0)
        wide = body.op("Mul", scales, body.op("Constant", value_float=float(2**low)))
        output = body.op("Add", output, _product(body, runtime, _HIGH_BITS, high, wide, middle))
    if variant.zero_points:
        output = body.op("Add", output, _correction(body, variant, scales))
    built = nbits.close(body, variant, output, runtime.overload)
    built.opset_imports[microsoft.DOMAIN] = 1
    return built


def _product(
    body: Body, runtime: RuntimeVariant, bits: int, plane: ir.Value, scales: ir.Value, zero: int | None = None
) -> ir.Value:
    """The runtime's product with one plane; ``zero`` comes off its numbers, their middle where it is None."""
    inputs: dict[str, ir.Value | None] = {"A": body["a"], "B": plane, "scales": scales}
    if zero is not None:
        rows, blocks = body.op("Shape", scales, start=0, end=1), body.op("Shape", scales, start=1, end=2)
        per_byte = body.integers(8 // bits)
        last = body.op("Sub", per_byte, body.integers(1))
        count = body.op("Div", body.op("Add", blocks, last), per_byte)
        byte = sum(zero << place for place in range(0, 8, bits))
        inputs["zero_points"] = body.op("Expand", nbits.uint8(body, byte), body.op("Concat", rows, count, axis=0))
    node = microsoft.MATMUL_NBITS.make(inputs, {"bits": bits, "accuracy_level": runtime.accuracy_level})
    for name in ("K", "N", "block_size"):
        node.attributes.add(ir.RefAttr(name, name, ir.AttributeType.INT))
    (output,) = body.add(node)
    return output


def _twice_as_wide(body: Body, plane: ir.Value) -> ir.Value:
    """Numbers of one bit as numbers of two: byte hgfedcba becomes 0d0c0b0a, 0h0g0f0e."""
    last = body.integers(-1)
    halves = [
        body.op("BitwiseAnd", plane, nbits.uint8(body, 15)),
        body.op("BitShift", plane, nbits.uint8(body, 4), direction="RIGHT"),
    ]
    pairs = body.op("Concat", *(body.op("Unsqueeze", half, last) for half in halves), axis=-1)
    spread = body.op("Reshape", pairs, body.integers(0, 0, -1))
    for distance, kept in ((2, 0b00110011), (1, 0b01010101)):
        moved = body.op("BitShift", spread, nbits.uint8(body, distance), direction="LEFT")
        spread = body.op("BitwiseAnd", body.op("BitwiseOr", spread, moved), nbits.uint8(body, kept))
    return spread


def _correction(body: Body, variant: nbits.Variant, scales: ir.Value) -> ir.Value:
    """What zero points add beside the middle of the levels."""
    middle = body.op("Constant", value_float=float(2 ** (variant.bits - 1)))
    offsets = body.op("Mul", body.op("Sub", middle, nbits.zeros(body, variant, body["zero_points"])), scales)
    filled = nbits.fill(body, variant, body["a"])
    shape = body.op("Concat", body.op("Shape", filled, end=-1), body.integers(-1, "block_size"), axis=0)
    sums = body.op("ReduceSum", body.op("Reshape", filled, shape), body.integers(-1), keepdims=0)
    return body.op("MatMul", sums, body.op("Transpose", offsets, perm=[1, 0]))
