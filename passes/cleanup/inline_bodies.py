"""Bodies of llmc's operators into the graph, for runtimes that are given operators of the ONNX standard alone.

llmc::MoE(x, …), llmc::CachedAttention(q, …) that was not lowered   →   the nodes of its body
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from llmc.compiler.graph.operators.domain import DOMAIN
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally


@dataclass(frozen=True)
class InlineBodies(GraphPass):
    """Replace each call of an llmc operator by the nodes of its body."""

    order = Order(needs=(Fact.ATTENTION,), gives=(Fact.EXPERTS,), ends=(Fact.LAYOUTS, Fact.NOTHING_DEAD))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """All at once; the bodies are gone afterwards."""
        calls = [node for node in model.graph if node.domain == DOMAIN]
        if not calls:
            return
        for body in filter(_is_body, model.functions.values()):
            # What bodies are written in means the same in the version that a lowering has moved the graph to.
            body.opset_imports[""] = model.graph.opset_imports[""]
        InlinePass(criteria=_is_body)(model)
        for key in [key for key, function in model.functions.items() if _is_body(function)]:
            del model.functions[key]
        tally.count("operators", len(calls))


def _is_body(function: ir.Function) -> bool:
    return function.domain == DOMAIN
