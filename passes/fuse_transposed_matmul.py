"""A product with a transposed table into one node, so that no runtime keeps the table twice.

MatMul(x, Transpose(table))   →   com.microsoft::FusedMatMul(x, table, transB = 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.passes.graph_pass import FusionPass
from llmc.passes.graph_query import is_weight, producer, replace_node


@dataclass(frozen=True)
class FuseTransposedMatMul(FusionPass):
    """The output projection of a model whose embedding is tied to it."""

    what: ClassVar[str] = "transposed_matmul"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every product with a transposed constant."""
        products = [node for node in model.graph if node.op_type == "MatMul" and not node.domain]
        transposes = [(node, producer(node.inputs[1], "Transpose")) for node in products]
        return [node for node, transpose in transposes if transpose is not None and is_weight(transpose.inputs[0])]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        transpose = producer(node.inputs[1], "Transpose")
        assert transpose is not None
        inputs = [node.inputs[0], transpose.inputs[0]]
        new = ir.node("FusedMatMul", inputs, {"transB": 1}, domain="com.microsoft", name=node.name)
        replace_node(node, [new], new.outputs)

    def finish(self, model: ir.Model) -> None:
        """Declare the operator's domain."""
        model.graph.opset_imports.setdefault("com.microsoft", 1)
