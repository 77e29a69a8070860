"""One name, one node.

    model.layers.0/MatMul, model.layers.0/MatMul    →    model.layers.0/MatMul, model.layers.0/MatMul.1

A model may run the same layer more than once; what passes make of it is named after the layer, each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.passes.graph.graph_query import free_name
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally


@dataclass(frozen=True)
class UniqueNodeNames(GraphPass):
    """Number the nodes of one name; runtimes refuse a graph in which two have the same."""

    order = Order(gives=(Fact.OWN_NAMES,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """The first keeps its name."""
        taken = {node.name for node in model.graph if node.name}
        seen: set[str] = set()
        for node in model.graph:
            if node.name and node.name in seen:
                node.name = free_name(node.name, taken)
                taken.add(node.name)
                tally.count("names")
            if node.name:
                seen.add(node.name)
