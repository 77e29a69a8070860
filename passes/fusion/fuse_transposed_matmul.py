"""A product with a transposed table into one node, so that no runtime keeps the table twice.

MatMul(x, Transpose(table))   →   com.microsoft::FusedMatMul(x, table, transB = 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import FUSED_MATMUL
from llmc.passes.graph.graph_query import is_weight, producer, replace_node
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class FuseTransposedMatMul(FusionPass):
    """The output projection of a model whose embedding is tied to it."""

    what: ClassVar[str] = "transposed_matmul"
    domain: ClassVar[str] = FUSED_MATMUL.domain
    order = Order(ends=(Fact.TABLES,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every product with a transposed constant."""
        products = [node for node in model.graph if node.op_type == "MatMul" and not node.domain]
        transposes = [(node, producer(node.inputs[1], "Transpose")) for node in products]
        return [node for node, transpose in transposes if transpose is not None and is_weight(transpose.inputs[0])]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        transpose = producer(node.inputs[1], "Transpose")
        assert transpose is not None
        table = transpose.inputs[0]
        assert table is not None
        assert table.const_value is not None
        # Without a permutation all axes are reversed, however many there are.
        backwards = [*range(len(table.const_value.shape))][::-1]
        perm = [int(axis) for axis in transpose.attributes.get_ints("perm", backwards)]
        if perm != [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]:
            raise NearMiss(f"its constant is transposed by {perm}, which does more than swap the last two axes")
        new = FUSED_MATMUL.make({"A": node.inputs[0], "B": table}, {"transB": 1}, name=node.name)
        replace_node(node, [new], new.outputs)
