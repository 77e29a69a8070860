"""Bodies of stateful layers into the graph.

    y, states = llmc::Recurrence(x, states, valid, W_in, …, W_out)
        →   MatMul(x, W_in) ─▶ Scan(states, …) ─▶ MatMul(…, W_out)

A body's projections run over the whole chunk, outside its scan. In the graph they are like any other projection: what
is constant about them is folded, and they are quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators import recurrence
from llmc.passes.cleanup.inline_bodies import inline_calls
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally


@dataclass(frozen=True)
class InlineRecurrence(GraphPass):
    """Replace each call of a recurrence by the nodes of its body."""

    order = Order(gives=(Fact.RECURRENCES,), ends=(Fact.FOLDED,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """All at once; the bodies are gone afterwards."""
        inline_calls(model, {recurrence.NAME}, tally, "layers")
