"""Gives every llmc operator in the graph its body.

llmc::CachedAttention (a call)   →   the same call, and the function that says in standard ONNX what it means
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention, moe
from llmc.compiler.graph.operators.domain import DOMAIN, VERSION
from llmc.passes.graph_pass import GraphPass, Tally

OPERATORS: tuple[tuple[Any, Any], ...] = (
    (cached_attention.is_cached_attention, cached_attention),
    (moe.is_moe, moe),
)
"""How a call is recognised, and the module that knows its variants; recurrences bring their bodies from the trace."""


@dataclass(frozen=True)
class AttachBodies(GraphPass):
    """Add one function per variant that is called."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Set each call's overload and add the function that it names."""
        for node in model.graph:
            operator = next((item for matches, item in OPERATORS if matches(node)), None)
            if operator is None:
                continue
            variant = operator.variant_of(node)
            if node.overload != variant.overload:
                node.overload = variant.overload
            if node.op_identifier() not in model.functions:
                body = operator.function(variant)
                model.functions[body.identifier()] = body
                tally.count("bodies")
        if tally.fired:
            model.graph.opset_imports.setdefault(DOMAIN, VERSION)
