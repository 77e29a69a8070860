"""Quantized products to llmc's own operator for the CPU.

    MatMulNBits(x)                                          →  llmc.cpu::MatMulNBits(x)
    MatMulNBits(x) + MatMul(block sums of x, offsets)       →  llmc.cpu::MatMulNBits(x, offsets)
    MatMulNBits(SkipSimplifiedLayerNormalization(x, r, w))  →  llmc.cpu::MatMulNBits(x, gamma = w, skip = r), x + r
    MatMulNBits(RMSNormalization(x, w))                     →  llmc.cpu::MatMulNBits(x, gamma = w)
    llmc::MatMulNBits(x) (+ b)                              →  llmc.cpu::MatMulNBits(x, bias = b), and norms as above

The operator takes the weights as they are stored and packs them when it is created, so the graph goes on sharing
its data file with the one that uses ONNX Runtime's own. Norms go last, when what added offsets no longer reads them
(:mod:`.norms_inside`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu
from llmc.passes.engine.norms_inside import move_norms
from llmc.passes.engine.packed_call import is_packed_call, packed_call
from llmc.passes.graph.graph_query import dims, is_weight, only_consumer, producer, replace_node, take_place
from llmc.passes.graph_pass import Fact, FusionPass, Order


@dataclass(frozen=True)
class UseCpuMatMul(FusionPass):
    """Replace MatMulNBits, and take in the norm before it."""

    what: ClassVar[str] = "matmul"
    order = Order(gives=(Fact.CPU_PRODUCTS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every product with a weight in integers."""
        return [node for node in model.graph if is_packed_call(node)]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one product."""
        call = packed_call(node)
        x, inputs = call.x, dict(call.inputs)
        if call.coded:
            add, inputs["bias"] = _bias_after(node)
        else:
            add, offsets = (node, None) if inputs["zero_points"] is not None else _offsets_after(node, x)
            inputs["offsets"] = offsets
        if add is not node:
            _remove_addition(model.graph, node, add)
        new = cpu.MATMUL.make({"a": x, **inputs}, call.attributes, name=node.name)
        replace_node(node, [new], new.outputs)

    def finish(self, model: ir.Model) -> None:
        """Take in norms, and declare the domain."""
        move_norms(model.graph)
        model.graph.opset_imports.setdefault(cpu.DOMAIN, cpu.VERSION)
        model.graph.sort()


def _bias_after(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The addition of a bias to this product, and the bias; the node itself and None without any."""
    add, other = _addition_after(node)
    is_bias = is_weight(other) and dims(other) == [node.attributes.get_int("N", 0)]
    return (add, other) if is_bias else (node, None)


def _addition_after(node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The one node that reads a product, where that adds something to it, and what; else the node itself and None."""
    add = only_consumer(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return node, None
    return add, add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]


def _offsets_after(node: ir.Node, x: ir.Value | None) -> tuple[ir.Node, ir.Value | None]:
    """The addition of block offsets to this product, and the offsets; the node itself and None without any."""
    add, other = _addition_after(node)
    correction = producer(other, "MatMul")
    sums = producer(correction.inputs[0], "ReduceSum") if correction is not None else None
    by_block = producer(sums.inputs[0], "Reshape") if sums is not None else None
    if correction is None or by_block is None or by_block.inputs[0] is not x or not is_weight(correction.inputs[1]):
        return node, None
    return add, correction.inputs[1]


def _remove_addition(graph: ir.Graph, node: ir.Node, add: ir.Node) -> None:
    """Let the product give the sum's value, under its name, and drop what is then unused."""
    result, product = add.outputs[0], node.outputs[0]
    value = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    take_place(result, product)
    graph.remove(add, safe=True)
    while value is not None and (maker := value.producer()) is not None and not list(value.uses()):
        if maker.op_type not in {"MatMul", "ReduceSum", "Reshape"}:
            break
        value = maker.inputs[0]
        graph.remove(maker, safe=True)
