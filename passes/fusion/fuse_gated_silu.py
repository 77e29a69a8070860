"""A gated activation into one node.

    g' = QuickGelu(g, alpha = 1)
    y  = Mul(g', u)               →   y = com.microsoft::GatedRMSNorm(u, scale, g, epsilon)

GatedRMSNorm computes ``u / sqrt(mean(u²) + epsilon) * scale * silu(g)``. With an epsilon of 2^30, beside which the
mean vanishes, and a scale of 2^15 = sqrt(epsilon) what is left is ``u * silu(g)``, computed in float32 in one kernel.
The mean of squares over 128 features changes the result by mean / 2^31, relatively: less than half a unit of
float16's last place while the root of that mean stays below 700.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import GATED_NORM, GATED_SILU_EPSILON, QUICK_GELU
from llmc.passes.graph.graph_query import both_ways, dims, only_consumer, producer, replace_node, small_initializer
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

SCALE = GATED_SILU_EPSILON**0.5
WIDTHS = (128, 64, 32)
"""Features over which the kernel takes its mean: the first of these that divides the layer's width."""


@dataclass(frozen=True)
class FuseGatedSilu(FusionPass):
    """Replace ``silu(gate) * up``."""

    what: ClassVar[str] = "gated_silu"
    domain: ClassVar[str] = GATED_NORM.domain
    order = Order(needs=(Fact.FLOAT32, Fact.SILU))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every product with a SiLU."""
        return [node for node in model.graph if _silu(node) is not None]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        sides = _silu(node)
        assert sides is not None
        silu, up = sides
        gate = silu.inputs[0]
        if only_consumer(silu.outputs[0]) is not node:
            raise NearMiss("its activation is used elsewhere, too")
        shape = dims(gate)
        if shape is None or None in shape or shape != dims(up):
            raise NearMiss("gate and up differ in shape, or it is not known")
        if not isinstance(shape[-1], int):
            raise NearMiss("its width is not known")
        width = next((width for width in WIDTHS if shape[-1] % width == 0), None)
        if width is None:
            raise NearMiss(f"its width {shape[-1]} is no multiple of {WIDTHS[-1]}")
        scale = small_initializer(model.graph, f"gate_scale_{width}", np.full(width, SCALE, np.float32))
        options: dict[str, float | str] = {"epsilon": GATED_SILU_EPSILON, "activation": "silu"}
        new = GATED_NORM.make({"X": up, "scale": scale, "gate": gate}, options, name=node.name)
        replace_node(node, [new], new.outputs)
        model.graph.remove(silu, safe=True)


def _silu(node: ir.Node) -> tuple[ir.Node, ir.Value | None] | None:
    """The SiLU of a product, and what it is multiplied with."""
    if node.op_type != "Mul" or node.domain:
        return None
    sides = [(producer(value, QUICK_GELU.name, QUICK_GELU.domain), up) for value, up in both_ways(node)]
    silus = [
        (silu, up) for silu, up in sides if silu is not None and silu.attributes.get_float("alpha", 1.702) == 1.0
    ]
    return silus[0] if silus else None
