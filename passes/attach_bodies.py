"""Gives every llmc operator in the graph its body.

llmc::CachedAttention (a call)   →   the same call, and the function that says in standard ONNX what it means
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.operators import cached_attention
from llmc.compiler.operators.domain import DOMAIN, VERSION
from llmc.passes.graph_pass import GraphPass, Tally


@dataclass(frozen=True)
class AttachBodies(GraphPass):
    """Add one function per variant that is called."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Set each call's overload and add the function that it names."""
        for node in model.graph:
            if not cached_attention.is_cached_attention(node):
                continue
            variant = cached_attention.variant_of(node)
            if node.overload != variant.overload:
                node.overload = variant.overload
            if node.op_identifier() not in model.functions:
                body = cached_attention.function(variant)
                model.functions[body.identifier()] = body
                tally.count("bodies")
        if tally.fired:
            model.graph.opset_imports.setdefault(DOMAIN, VERSION)
