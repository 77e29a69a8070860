"""Residual addition and the norm after it into one node.

    s = Add(x, r)                                   y, s = com.microsoft::SkipSimplifiedLayerNormalization(x, r, w)
    y = RMSNormalization(s, w)              →

``s`` goes on as the residual stream. A norm whose input is no addition stays the standard operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import SKIP_NORM
from llmc.passes.graph.graph_query import constant, dims, is_weight, producer, take_place
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

BETWEEN = {"Cast", "Identity", "Reshape", "Transpose", "Expand", "Unsqueeze", "Mul", "Div"}
"""What may lie between an addition and a norm that belongs to it; it keeps them from being fused."""


@dataclass(frozen=True)
class FuseSkipNorm(FusionPass):
    """Fuse each RMSNormalization with the addition that feeds it."""

    what: ClassVar[str] = "skip_norm"
    domain: ClassVar[str] = SKIP_NORM.domain
    order = Order(needs=(Fact.FLOAT32,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every norm that follows an addition, even if a cast, a reshape or a constant factor lies between."""
        norms = [node for node in model.graph if node.op_type == "RMSNormalization" and not node.domain]
        return [norm for norm in norms if _addition(norm.inputs[0]) is not None]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Fuse one norm."""
        add = producer(node.inputs[0], "Add")
        if add is None:
            between = node.inputs[0].producer() if node.inputs[0] is not None else None
            raise NearMiss(f"{between.op_type if between else 'an input'} lies between it and the addition")
        x, residual = add.inputs
        if x is None or residual is None or is_weight(x) or is_weight(residual):
            raise NearMiss("the addition before it adds a constant")
        shape = dims(x)
        if shape is None or None in shape or shape != dims(residual) or len(shape) != 3:
            raise NearMiss("the addition before it broadcasts, or its shape is not known")
        if node.attributes.get_int("axis", -1) not in {-1, len(shape) - 1}:
            raise NearMiss("it does not normalize the last axis")
        if any(user.node.op_type == "RMSNormalization" and user.node is not node for user in add.outputs[0].uses()):
            raise NearMiss("the addition before it feeds another norm, too")
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        inputs = {"input": x, "skip": residual, "gamma": node.inputs[1]}
        fused = SKIP_NORM.make(inputs, {"epsilon": epsilon}, num_outputs=len(SKIP_NORM.outputs), name=node.name)
        for unused in ("mean", "inv_std_var"):
            # Absent outputs: they are for training, and are float32 whatever the input is.
            SKIP_NORM.result(fused, unused).name = ""
        total = SKIP_NORM.result(fused, "input_skip_bias_sum")
        model.graph.insert_after(add, fused)
        for old, new in ((node.outputs[0], fused.outputs[0]), (add.outputs[0], total)):
            take_place(old, new)
        model.graph.remove([node, add], safe=True)

    def finish(self, model: ir.Model) -> None:
        """Sort: a scale that is computed may come after the addition."""
        model.graph.sort()


def _addition(value: ir.Value | None) -> ir.Node | None:
    """The addition that ``value`` comes from, through nothing but casts, layout changes and constant factors."""
    node = value.producer() if value is not None else None
    while node is not None and not node.domain and node.op_type in BETWEEN:
        varying = [v for v in node.inputs if v is not None and not is_weight(v) and constant(v) is None]
        if len(varying) != 1:
            return None
        node = varying[0].producer()
    return node if node is not None and node.op_type == "Add" and not node.domain else None
