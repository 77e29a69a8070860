"""SiLU into one node.

    Mul(x, Sigmoid(x))   →   com.microsoft::QuickGelu(x, alpha = 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.passes.graph_pass import GraphPass, Tally
from llmc.passes.graph_query import only_consumer, producer, replace_node


@dataclass(frozen=True)
class FuseSilu(GraphPass):
    """Replace ``x * sigmoid(x)`` by QuickGelu, which computes ``x * sigmoid(alpha * x)``."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every product."""
        for node in list(model.graph):
            if node.op_type != "Mul" or node.domain:
                continue
            for index in (0, 1):
                x, activated = node.inputs[1 - index], node.inputs[index]
                sigmoid = producer(activated, "Sigmoid")
                if sigmoid is None or x is None or sigmoid.inputs[0] is not x:
                    continue
                if only_consumer(sigmoid.outputs[0]) is not node:
                    tally.reject(node, "its sigmoid is used elsewhere, too")
                    break
                new = ir.node("QuickGelu", [x], {"alpha": 1.0}, domain="com.microsoft", name=node.name)
                replace_node(node, [new], new.outputs)
                model.graph.remove(sigmoid, safe=True)
                tally.count("silu")
                break
        if tally.fired:
            model.graph.opset_imports.setdefault("com.microsoft", 1)
