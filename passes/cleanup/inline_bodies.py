"""Bodies of llmc's operators into the graph, for runtimes that are given operators of the ONNX standard alone.

llmc::MoE(x, …), llmc::CachedAttention(q, …) that was not lowered   →   the nodes of its body
"""

from __future__ import annotations

from collections.abc import Collection
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
        names = {function.name for function in model.functions.values() if function.domain == DOMAIN}
        inline_calls(model, names, tally, "operators")


def inline_calls(model: ir.Model, names: Collection[str], tally: Tally, what: str) -> None:
    """Replace the calls of llmc's operators of these names, and drop their bodies; ``what`` is counted."""
    calls = [node for node in model.graph if node.domain == DOMAIN and node.op_type in names]
    bodies = [body for body in model.functions.values() if body.domain == DOMAIN and body.name in names]
    if not calls:
        return
    for body in bodies:
        # What bodies are written in means the same in the version that a lowering has moved the graph to.
        body.opset_imports[""] = model.graph.opset_imports[""]
    InlinePass(criteria=lambda function: function in bodies)(model)
    for body in bodies:
        model.functions.pop(body.identifier(), None)
    tally.count(what, len(calls))
