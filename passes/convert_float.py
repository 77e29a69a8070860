"""Half-precision graphs to float32, for processors that compute in nothing less.

float16 and bfloat16 weights, inputs, outputs, casts   →   float32
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.lazy_weight import cast_weight
from llmc.passes.graph_pass import GraphPass, Tally

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True)
class ConvertFloat(GraphPass):
    """Make every half-precision value float32; weights are cast lazily."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Initializers, graph inputs, what nodes make, and casts to half."""
        graph = model.graph
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALF:
                value.const_value = cast_weight(value.const_value, ir.DataType.FLOAT)
                value.dtype = ir.DataType.FLOAT
                tally.count("weights")
        for node in graph:
            if node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to", 1)) in HALF:
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
                tally.count("casts")
        for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
            if value.dtype in HALF:
                value.dtype = ir.DataType.FLOAT
                tally.count("values")
