"""SiLU into one node.

Mul(x, Sigmoid(x))   →   com.microsoft::QuickGelu(x, alpha = 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import QUICK_GELU
from llmc.passes.graph.graph_query import only_consumer, own_sigmoid, replace_node
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class FuseSilu(FusionPass):
    """Replace ``x * sigmoid(x)`` by QuickGelu, which computes ``x * sigmoid(alpha * x)``."""

    what: ClassVar[str] = "silu"
    domain: ClassVar[str] = QUICK_GELU.domain
    order = Order(needs=(Fact.FLOAT32,), gives=(Fact.SILU,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every product of something with its own sigmoid."""
        return [node for node in model.graph if own_sigmoid(node) is not None]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        sigmoid = own_sigmoid(node)
        assert sigmoid is not None
        if only_consumer(sigmoid.outputs[0]) is not node:
            raise NearMiss("its sigmoid is used elsewhere, too")
        new = QUICK_GELU.make({"X": sigmoid.inputs[0]}, {"alpha": 1.0}, name=node.name)
        replace_node(node, [new], new.outputs)
        model.graph.remove(sigmoid, safe=True)
