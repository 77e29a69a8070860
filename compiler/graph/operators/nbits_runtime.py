"""``llmc::MatMulNBits`` in ONNX Runtime's own operators: what its CPU provider runs without llmc's kernels.

    a · wᵀ  =  com.microsoft::MatMulNBits(a, levels, scales)
               +  MatMul(sums of a by block, (2^(bits-1) - zero) · scales)

The body in standard operators (:mod:`.nbits`) leaves a matrix of floats to whoever folds it when a session is made:
four bytes a weight, and all that lies between. Here what is folded is small, a float or two for a block, and levels
of 4 and 8 bits stay as they are; those of other widths become bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators import microsoft, nbits
from llmc.compiler.graph.operators.domain import Body

_KEPT = (4, 8)
"""Bits whose planes are what ONNX Runtime's operator reads."""


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
    half = 2 ** (variant.bits - 1)
    by_row = body.op("Unsqueeze", body["row_scales"], body.integers(-1))
    scales = body.op("Mul", nbits.as_float(body, body["scales"]), by_row)
    inputs: dict[str, ir.Value | None] = {"A": body["a"], "B": body["weight"], "scales": scales}
    if variant.bits not in _KEPT:
        inputs["B"] = nbits.levels(body, variant, dict(body.inputs))
        inputs["zero_points"] = body.op("Expand", nbits.uint8(body, half), body.op("Shape", body["scales"]))
    bits = variant.bits if variant.bits in _KEPT else 8
    node = microsoft.MATMUL_NBITS.make(inputs, {"bits": bits, "accuracy_level": runtime.accuracy_level})
    for name in ("K", "N", "block_size"):
        node.attributes.add(ir.RefAttr(name, name, ir.AttributeType.INT))
    (output,) = body.add(node)
    if variant.zero_points:
        middle = body.op("Constant", value_float=float(half))
        zeros = nbits.zeros(body, variant, body["zero_points"])
        offsets = body.op("Mul", body.op("Sub", middle, zeros), scales)
        filled = nbits.fill(body, variant, body["a"])
        shape = body.op("Concat", body.op("Shape", filled, end=-1), body.integers(-1, "block_size"), axis=0)
        sums = body.op("ReduceSum", body.op("Reshape", filled, shape), body.integers(-1), keepdims=0)
        correction = body.op("MatMul", sums, body.op("Transpose", offsets, perm=[1, 0]))
        output = body.op("Add", output, correction)
    built = nbits.close(body, variant, output, runtime.overload)
    built.opset_imports[microsoft.DOMAIN] = 1
    return built
