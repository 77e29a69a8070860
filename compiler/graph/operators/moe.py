"""``llmc::MoE``: a layer's experts applied to the tokens that a router chose for them, as one node.

    hidden [tokens, hidden], indices [tokens, k] int64, weights [tokens, k]
    for each expert e, for the tokens t that name it:
        a = fc1[e] · hidden[t] (+ fc1_bias[e])
        gated:    g, u = halves of a;  g = min(g, limit);  u = clamp(u, ±limit);  a = act(g) · (u + beta)
        plain:    a = act(a)
        y[t] += weight(t, e) · (fc2[e] · a (+ fc2_bias[e]))

How the router chose plays no part: softmax, sigmoid, groups and corrections lie before the node, so every kind of
mixture of experts is the same operator. The body computes each expert for its own tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import onnx_ir as ir

from llmc.compiler.graph.operators.domain import DOMAIN, Body
from llmc.compiler.graph.operators.signature import Signature

NAME = "MoE"
INPUTS = ("hidden", "indices", "weights", "fc1", "fc2", "fc1_bias", "fc2_bias")
SIGNATURE = Signature(DOMAIN, NAME, INPUTS)
is_moe = SIGNATURE.is_call
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "identity")
"""What ``activation`` may be; ``silu`` is g · sigmoid(alpha · g)."""
FLOAT_ATTRIBUTES = {"alpha": 1.0, "beta": 0.0, "limit": 0.0}


@dataclass(frozen=True)
class Variant:
    """What decides the body.

    Attributes:
        activation: One of :data:`ACTIVATIONS`.
        gated: ``fc1`` makes a gate and an up half.
        interleaved: Gate and up rows alternate; else the gate's come first.
        transposed: Weights are [experts, in, out]; else [experts, out, in].
        limited: The attribute ``limit`` is positive.
        biases: Both biases are given.
    """

    activation: str
    gated: bool
    interleaved: bool = False
    transposed: bool = False
    limited: bool = False
    biases: bool = False

    @property
    def overload(self) -> str:
        """Name of the variant: ``silu_gated_transposed``."""
        flags = [field.name for field in fields(self)[1:] if getattr(self, field.name)]
        return "_".join([self.activation, *flags])


def variant_of(node: ir.Node) -> Variant:
    """The variant that a call's inputs and attributes ask for."""
    given = node.attributes
    return Variant(
        activation=given.get_string("activation", "silu"),
        gated=bool(given.get_int("gated", 1)),
        interleaved=bool(given.get_int("interleaved", 0)),
        transposed=bool(given.get_int("transposed", 0)),
        limited=given.get_float("limit", 0.0) > 0,
        biases=SIGNATURE.get(node, "fc1_bias") is not None,
    )


def function(variant: Variant) -> ir.Function:
    """The body of one variant: a Scan over the experts, which gathers each one's tokens."""
    body = Body(INPUTS)
    hidden, experts = body["hidden"], body.op("Shape", body["fc1"], start=0, end=1)
    tokens = body.op("Shape", hidden, start=0, end=1)
    # Sums are in float32: several weights of one expert, several experts of one token; and not every runtime adds
    # to elements of half precision.
    zero, single = body.op("Constant", value_float=0.0), int(ir.DataType.FLOAT)
    zeros = body.op("Expand", zero, body.op("Concat", tokens, experts, axis=0))
    updates = body.op("Cast", body["weights"], to=single)
    routing = body.op("ScatterElements", zeros, body["indices"], updates, axis=1, reduction="add")
    start = body.op("Expand", zero, body.op("Shape", hidden))
    names = ["routing", "fc1", "fc2", *(("fc1_bias", "fc2_bias") if variant.biases else ())]
    scanned = [body.op("Transpose", routing, perm=[1, 0]), *(body[name] for name in names[1:])]
    options = {"body": _expert(variant, hidden, names), "num_scan_inputs": len(scanned)}
    (total,) = body.add(ir.node("Scan", [start, *scanned], options, num_outputs=1))
    output = body.op("CastLike", total, hidden)
    return body.function(NAME, variant.overload, {"output": output}, _attributes())


def _attributes() -> list[ir.Attr]:
    numbers = [ir.AttrFloat32(name, value) for name, value in FLOAT_ATTRIBUTES.items()]
    flags = [ir.AttrInt64("gated", 1), ir.AttrInt64("interleaved", 0), ir.AttrInt64("transposed", 0)]
    return [ir.AttrString("activation", "silu"), *flags, *numbers]


def _expert(variant: Variant, hidden: ir.Value, names: list[str]) -> ir.Graph:
    """What one expert adds to the sum: ``hidden`` comes from the surrounding function."""
    body = Body(["sum_in", *(f"expert_{name}" for name in names)])
    share = body["expert_routing"]
    rows = body.op("Squeeze", body.op("NonZero", share), body.op("Constant", value_ints=[0]))
    x = body.op("Gather", hidden, rows, axis=0)
    a = _product(body, variant, x, "fc1")
    a = _gate(body, variant, a) if variant.gated else _activation(body, variant.activation, a)
    y = body.op("Cast", _product(body, variant, a, "fc2"), to=int(ir.DataType.FLOAT))
    last = body.op("Constant", value_ints=[1])
    y = body.op("Mul", y, body.op("Unsqueeze", body.op("Gather", share, rows, axis=0), last))
    total = body.op("ScatterND", body["sum_in"], body.op("Unsqueeze", rows, last), y, reduction="add")
    return body.subgraph("expert", {"sum_out": total})


def _product(body: Body, variant: Variant, x: ir.Value, name: str) -> ir.Value:
    weight = body[f"expert_{name}"]
    if not variant.transposed:
        weight = body.op("Transpose", weight, perm=[1, 0])
    result = body.op("MatMul", x, weight)
    return body.op("Add", result, body[f"expert_{name}_bias"]) if variant.biases else result


def _gate(body: Body, variant: Variant, a: ir.Value) -> ir.Value:
    if variant.interleaved:
        end, axis, two = (body.op("Constant", value_ints=[number]) for number in (2**62, 1, 2))
        gate, up = (body.op("Slice", a, body.op("Constant", value_ints=[i]), end, axis, two) for i in (0, 1))
    else:
        gate, up = body.split_evenly(a, axis=1, count=2)
    if variant.limited:
        limit = body.op("CastLike", body.scalar_float("limit"), a)
        lower = body.op("Neg", limit)
        gate = body.op("Min", gate, limit)
        up = body.op("Max", body.op("Min", up, limit), lower)
    up = body.op("Add", up, body.op("CastLike", body.scalar_float("beta"), a))
    return body.op("Mul", _activation(body, variant.activation, gate), up)


def _activation(body: Body, activation: str, x: ir.Value) -> ir.Value:
    if activation == "silu":
        alpha = body.op("CastLike", body.scalar_float("alpha"), x)
        return body.op("Mul", x, body.op("Sigmoid", body.op("Mul", x, alpha)))
    if activation in {"gelu", "gelu_tanh"}:
        return body.op("Gelu", x, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation in {"relu", "relu2"}:
        positive = body.op("Relu", x)
        return body.op("Mul", positive, positive) if activation == "relu2" else positive
    return x
