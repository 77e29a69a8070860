"""``llmc::MatMulNBits`` and ``llmc::GatherNBits``: products with, and look-ups in, weights in packed numbers.

A weight [N output features, K input features] of ``bits`` 2, 3, 4, 5, 6 or 8, in blocks of ``block_size`` input
features, of which the last is filled up:

    w[r, f] = row_scales[r] * scales[r, b] * (level[r, f] - zero[r, b]),    b = f // block_size

    weight       uint8 [N, blocks, block_size * low / 8]: the low bits of levels, 2 (of 2 and 3), 4 (of 4, 5 and 6) or
                 8; feature f lies in byte f * low / 8, lower features in lower bits
    high         uint8 [N, blocks, block_size * h / 8]: the h = bits - low bits above them; absent where h is 0
    scales       uint8 [N, blocks]
    zero_points  uint8 [N, blocks]: zero = zero_points / 2^(8 - bits); absent: zero = 2^(bits - 1)
    row_scales   float32 [N]

    MatMulNBits(a [..., K], …)  →  [..., N]: a · wᵀ        GatherNBits(ids, …)  →  [*ids, K]: rows of w

An operator that rounds activations to integers takes 8 bits of them, or ``activation_bits``; the bodies do not round.
A body in ONNX Runtime's own operators keeps weights small there: :mod:`.nbits_runtime`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.operators.domain import DOMAIN, Body
from llmc.compiler.graph.operators.signature import Signature
from llmc.compiler.quantization.solver import low_bits

WEIGHT_INPUTS = ("weight", "scales", "zero_points", "high", "row_scales")
MATMUL = Signature(DOMAIN, "MatMulNBits", ("a", *WEIGHT_INPUTS))
GATHER = Signature(DOMAIN, "GatherNBits", ("ids", *WEIGHT_INPUTS))
ACTIVATION_BITS = 8
"""Of a product that says nothing else."""
SIZES = ("K", "N", "bits", "block_size")
"""Attributes of both, beside ``activation_bits`` of a product."""


@dataclass(frozen=True)
class Variant:
    """What decides the body.

    Attributes:
        operator: Name of the operator.
        bits: Of a number.
        zero_points: Whether blocks have them.
        ragged: The last block is filled up.
    """

    operator: str
    bits: int
    zero_points: bool
    ragged: bool = False

    @property
    def overload(self) -> str:
        """Name of the variant: ``q4_zero_ragged``."""
        return f"q{self.bits}" + "_zero" * self.zero_points + "_ragged" * self.ragged


def is_call(node: ir.Node | None) -> bool:
    """Whether ``node`` calls one of the two."""
    return MATMUL.is_call(node) or GATHER.is_call(node)


def variant_of(node: ir.Node) -> Variant:
    """The variant that a call's inputs and attributes ask for."""
    signature = MATMUL if MATMUL.is_call(node) else GATHER
    given = node.attributes
    ragged = given["K"].as_int() % given["block_size"].as_int() != 0
    return Variant(
        node.op_type, given["bits"].as_int(), signature.get(node, "zero_points") is not None, ragged=ragged
    )


def function(variant: Variant) -> ir.Function:
    """The body of one variant."""
    if variant.operator == GATHER.name:
        body = Body(GATHER.inputs)
        rows = {name: body.op("Gather", body[name], body["ids"], axis=0) for name in _given(variant)}
        weights = _weights(body, variant, rows)
        table = body.op("Concat", body.op("Shape", body["ids"]), body.integers(-1), axis=0)
        return close(body, variant, cut(body, variant, body.op("Reshape", weights, table)))
    body = Body(MATMUL.inputs)
    weights = _weights(body, variant, {name: body[name] for name in _given(variant)})
    matrix = body.op("Transpose", body.op("Reshape", weights, body.integers(0, -1)), perm=[1, 0])
    return close(body, variant, body.op("MatMul", fill(body, variant, body["a"]), matrix))


def close(body: Body, variant: Variant, output: ir.Value, overload: str = "") -> ir.Function:
    """A finished body."""
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in SIZES]
    if variant.operator == MATMUL.name:
        attributes.append(ir.AttrInt64("activation_bits", ACTIVATION_BITS))
    return body.function(variant.operator, overload or variant.overload, {"output": output}, attributes)


def _given(variant: Variant) -> list[str]:
    """Inputs that a weight of the variant has."""
    given = {"zero_points": variant.zero_points, "high": low_bits(variant.bits) < variant.bits}
    return [name for name in WEIGHT_INPUTS if given.get(name, True)]


def _weights(body: Body, variant: Variant, parts: dict[str, ir.Value]) -> ir.Value:
    """[..., blocks, block size] float32 of parts [..., blocks, bytes], codes [..., blocks] and scales [...]."""
    last = body.integers(-1)
    numbers = as_float(body, levels(body, variant, parts))
    zero: ir.Value = body.op("Constant", value_float=float(2 ** (variant.bits - 1)))
    if variant.zero_points:
        zero = body.op("Unsqueeze", zeros(body, variant, parts["zero_points"]), last)
    scales = body.op("Unsqueeze", as_float(body, parts["scales"]), last)
    by_row = body.op("Unsqueeze", parts["row_scales"], body.integers(-1, -2))
    # Up to here every number is exact.
    return body.op("Mul", body.op("Mul", body.op("Sub", numbers, zero), scales), by_row)


def levels(body: Body, variant: Variant, parts: dict[str, ir.Value]) -> ir.Value:
    """[..., blocks, block size] uint8."""
    low = low_bits(variant.bits)
    shape = body.op("Concat", body.op("Shape", parts["scales"]), body.integers("block_size"), axis=0)
    numbers = _plane(body, parts["weight"], low, shape)
    if low == variant.bits:
        return numbers
    high = _plane(body, parts["high"], variant.bits - low, shape)
    return body.op("BitwiseOr", numbers, body.op("BitShift", high, uint8(body, low), direction="LEFT"))


def _plane(body: Body, plane: ir.Value, bits: int, shape: ir.Value) -> ir.Value:
    """The numbers of a plane."""
    if bits < 8:
        places = uint8(body, *range(0, 8, bits))
        split = body.op("BitShift", body.op("Unsqueeze", plane, body.integers(-1)), places, direction="RIGHT")
        plane = body.op("BitwiseAnd", split, uint8(body, 2**bits - 1))
    return body.op("Reshape", plane, shape)


def zeros(body: Body, variant: Variant, codes: ir.Value) -> ir.Value:
    """Zero points in levels, float32."""
    return body.op("Mul", as_float(body, codes), body.op("Constant", value_float=float(2.0 ** (variant.bits - 8))))


def fill(body: Body, variant: Variant, x: ir.Value) -> ir.Value:
    """Zeros after the last feature, as far as the last block goes."""
    if not variant.ragged:
        return x
    missing = body.op("Mod", body.op("Neg", body.integers("K")), body.integers("block_size"))
    pads = body.op("Concat", body.integers(0), missing, axis=0)
    return body.op("Pad", x, pads, None, body.integers(-1))


def cut(body: Body, variant: Variant, x: ir.Value) -> ir.Value:
    """What :func:`fill` adds taken away."""
    if not variant.ragged:
        return x
    return body.op("Slice", x, body.integers(0), body.integers("K"), body.integers(-1))


def as_float(body: Body, value: ir.Value) -> ir.Value:
    """In float32."""
    return body.op("Cast", value, to=int(ir.DataType.FLOAT))


def uint8(body: Body, *numbers: int) -> ir.Value:
    """A constant, [numbers]."""
    return body.op("Constant", value=ir.tensor(np.asarray(numbers, np.uint8)))
