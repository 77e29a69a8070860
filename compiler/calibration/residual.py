"""The residual stream beside a product: what its output is added to.

In: a product of a graph. Out: the value that stands beside it in a sum, where its output goes nowhere else. This
stream is off by what layers before have lost, and the product, whose weights are solved after theirs, can make up for
a part of that.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import SKIP_NORM

SUMMANDS = 2
"""The first inputs of a sum, and of a norm that adds before it."""


def residual(product: ir.Node) -> ir.Value | None:
    """What a product's output is added to, behind a bias too; None: it is read by anything else."""
    value = product.outputs[0]
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        node, place = uses[0].node, uses[0].idx
        is_sum = (node.op_type, node.domain) == ("Add", "")
        if place >= SUMMANDS or not (is_sum or SKIP_NORM.is_call(node)):
            return None
        other = node.inputs[1 - place]
        if other is None or not other.is_initializer():
            return other
        if not is_sum:
            return None
        value = node.outputs[0]
