"""Linear layers in one form.

    Gemm(x, W, b; transB = 1)   →   Add(MatMul(x, Transpose(W)), b)

torch writes a linear layer over two axes (all rows in one, as shared experts and routers have them) as Gemm, one
over three as MatMul. Everything after this looks for the second form: folding, packing, fusion, quantization.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.passes.graph.graph_query import copy_dtype, is_weight, replace_node
from llmc.passes.graph_pass import GraphPass, Tally


@dataclass(frozen=True)
class ExpandGemm(GraphPass):
    """Replace each Gemm that is a linear layer with a constant weight."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every node once."""
        for node in list(model.graph):
            if node.op_type == "Gemm" and not node.domain and _is_linear(node):
                _expand(node)
                tally.count("linear layers")


def _is_linear(node: ir.Node) -> bool:
    given = node.attributes
    scales = (given.get_float("alpha", 1.0), given.get_float("beta", 1.0))
    return scales == (1.0, 1.0) and not given.get_int("transA", 0) and is_weight(node.inputs[1])


def _expand(node: ir.Node) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    assert weight is not None
    new: list[ir.Node] = []
    stem = (node.name or "").removesuffix("/Gemm")

    def add(op_type: str, *inputs: ir.Value | None, **attributes: list[int]) -> ir.Value:
        made = ir.node(op_type, list(inputs), attributes, name=f"{stem}/{op_type}" if stem else None)
        copy_dtype(node.outputs[0], made.outputs[0])
        new.append(made)
        return made.outputs[0]

    if node.attributes.get_int("transB", 0):
        turned = add("Transpose", weight, perm=[1, 0])
        if weight.shape is not None:
            turned.shape = ir.Shape(list(weight.shape)[::-1])
        weight = turned
    result = add("MatMul", x, weight)
    result.shape = node.outputs[0].shape
    if bias is not None:
        result = add("Add", result, bias)
        result.shape = node.outputs[0].shape
    replace_node(node, new, [result])
