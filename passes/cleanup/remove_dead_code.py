"""Removes nodes, initializers and functions that no output needs, and computes equal things once.

Shape(past.17), Shape(input_ids), unused constants  →  gone
two nodes with equal operator, inputs, attributes   →  one
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally


@dataclass(frozen=True)
class RemoveDeadCode(GraphPass):
    """Common subexpressions, then unused nodes and initializers."""

    order = Order(gives=(Fact.NOTHING_DEAD,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Run onnx_ir's own passes in the order in which each leaves work for the next."""
        for name, step in (
            ("common subexpressions", CommonSubexpressionEliminationPass()),
            ("unused nodes", RemoveUnusedNodesPass()),
            ("unused functions", RemoveUnusedFunctionsPass()),  # type: ignore[no-untyped-call]
            ("unused opsets", RemoveUnusedOpsetsPass()),
        ):
            before = model.graph.num_nodes()
            if step(model).modified:
                tally.count(name, max(1, before - model.graph.num_nodes()))
