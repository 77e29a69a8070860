"""Residual addition and the norm after it into one node.

    s = Add(x, r)                                   y, s = com.microsoft::SkipSimplifiedLayerNormalization(x, r, w)
    y = RMSNormalization(s, w)              →

``s`` goes on as the residual stream. A norm whose input is no addition stays the standard operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.passes.graph_pass import GraphPass, NearMiss, Tally
from llmc.passes.graph_query import dims, is_weight, producer


@dataclass(frozen=True)
class FuseSkipNorm(GraphPass):
    """Fuse each RMSNormalization with the addition that feeds it."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every norm."""
        for node in list(model.graph):
            if node.op_type != "RMSNormalization" or node.domain:
                continue
            add = producer(node.inputs[0], "Add")
            if add is None:
                continue
            try:
                _fuse(model.graph, node, add)
                tally.count("skip_norm")
            except NearMiss as miss:
                tally.reject(node, str(miss))
        if tally.fired:
            model.graph.opset_imports.setdefault("com.microsoft", 1)


def _fuse(graph: ir.Graph, norm: ir.Node, add: ir.Node) -> None:
    x, residual = add.inputs
    if x is None or residual is None or is_weight(x) or is_weight(residual):
        raise NearMiss("the addition before it adds a constant")
    shape = dims(x)
    if shape is None or shape != dims(residual) or len(shape) != 3:
        raise NearMiss("the addition before it broadcasts, or its shape is not known")
    if norm.attributes.get_int("axis", -1) not in {-1, len(shape) - 1}:
        raise NearMiss("it does not normalize the last axis")
    if any(user.node.op_type == "RMSNormalization" and user.node is not norm for user in add.outputs[0].uses()):
        raise NearMiss("the addition before it feeds another norm, too")
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    fused = ir.node(
        "SkipSimplifiedLayerNormalization",
        [x, residual, norm.inputs[1]],
        {"epsilon": epsilon},
        domain="com.microsoft",
        num_outputs=4,
        name=norm.name,
    )
    for index in (1, 2):
        # Absent outputs: mean and inverse deviation are for training, and are float32 whatever the input is.
        fused.outputs[index].name = ""
    graph.insert_after(add, fused)
    for old, new in ((norm.outputs[0], fused.outputs[0]), (add.outputs[0], fused.outputs[3])):
        new.dtype, new.shape, name = old.dtype, old.shape, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = f"{name}.unfused", name
    graph.remove([norm, add], safe=True)
