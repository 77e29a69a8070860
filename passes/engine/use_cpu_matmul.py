"""Quantized products to llmc's own operator for the CPU.

    MatMulNBits(x)                                          →  llmc.cpu::MatMulNBits(x)
    MatMulNBits(x) + MatMul(block sums of x, offsets)       →  llmc.cpu::MatMulNBits(x, offsets)
    MatMulNBits(SkipSimplifiedLayerNormalization(x, r, w))  →  llmc.cpu::MatMulNBits(x, gamma = w, skip = r), x + r
    MatMulNBits(RMSNormalization(x, w))                     →  llmc.cpu::MatMulNBits(x, gamma = w)
    llmc::MatMulNBits(x) (+ b)                              →  llmc.cpu::MatMulNBits(x, bias = b), and norms as above

The operator takes the weights as they are stored and packs them when it is created, so the graph goes on sharing
its data file with the one that uses ONNX Runtime's own. A norm moves inside where products are all that reads it:
into each of them, which costs less than a node and a row of floats between; the residual is added in the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu
from llmc.compiler.graph.operators.microsoft import SKIP_NORM
from llmc.passes.engine.packed_call import is_packed_call, packed_call
from llmc.passes.graph.graph_query import (
    copy_dtype,
    dims,
    is_weight,
    only_consumer,
    producer,
    replace_node,
    take_place,
)
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


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
        x, attributes, inputs = call.x, dict[str, int | float](call.attributes), dict(call.inputs)
        if call.coded:
            add, inputs["bias"] = _bias_after(node)
        else:
            add, offsets = (node, None) if inputs["zero_points"] is not None else _offsets_after(node, x)
            inputs["offsets"] = offsets
        if add is not node:
            _remove_addition(model.graph, node, add)
        norm, readers = _norm_before(x, node)
        if norm is not None:
            # The norm's weight is its last input, after the residual where there is one.
            x, *residual, inputs["gamma"] = norm.inputs
            inputs["skip"] = residual[0] if residual else None
            attributes["epsilon"] = norm.attributes.get_float("epsilon", 1e-5)
        outputs = 1 if inputs.get("skip") is None else 2
        new = cpu.MATMUL.make({"a": x, **inputs}, attributes, num_outputs=outputs, name=node.name)
        replace_node(node, [new], new.outputs[:1])
        if norm is not None:
            _remove_norm(model.graph, norm, new, readers)

    def finish(self, model: ir.Model) -> None:
        """Declare the domain."""
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


def _norm_before(x: ir.Value | None, node: ir.Node) -> tuple[ir.Node | None, list[ir.Node]]:
    """The norm whose result only products read, of which this is the first, and the others; else None."""
    norm = x.producer() if x is not None else None
    if norm is None or x is None or norm.outputs[0] is not x or x.is_graph_output():
        return None, []
    readers = [use.node for use in x.uses() if use.node is not node]
    if not all(is_packed_call(reader) for reader in readers) or not _moves(norm, x, node):
        return None, []
    # Into all or none: a norm that one reader keeps is computed anyway. Those that follow find a plain one.
    known = x.shape is not None and len(x.shape) == 3
    return (norm, readers) if not readers or (known and all(map(_is_accepted, readers))) else (None, [])


def _moves(norm: ir.Node, x: ir.Value, node: ir.Node) -> bool:
    """Whether the operator computes a norm."""
    if dims(norm.inputs[-1]) not in (None, [node.attributes.get_int("K", 0)]):
        return False
    if SKIP_NORM.is_call(norm) and len(norm.inputs) == 3:
        return not _is_broadcast(*norm.inputs[:2])
    is_plain = norm.op_type == "RMSNormalization" and not norm.domain
    last = norm.attributes.get_int("axis", -1) in {-1, 2}
    return is_plain and last and x.shape is not None and len(x.shape) == 3


def _is_accepted(node: ir.Node) -> bool:
    """Whether a product will be replaced, too."""
    try:
        packed_call(node)
    except NearMiss:
        return False
    return True


def _is_broadcast(x: ir.Value | None, skip: ir.Value | None) -> bool:
    """Whether a residual is known to be smaller than what it is added to."""
    mine, theirs = dims(x), dims(skip)
    if mine is None or theirs is None:
        return False
    return len(mine) != len(theirs) or any(b == 1 and a != 1 for a, b in zip(mine, theirs, strict=True))


def _remove_norm(graph: ir.Graph, norm: ir.Node, new: ir.Node, readers: list[ir.Node]) -> None:
    """Drop a norm that moved into a product; other readers get one each, of the sum, which moves into them next."""
    x, result = norm.inputs[0], norm.outputs[0]
    attributes = {"epsilon": new.attributes.get_float("epsilon"), "axis": -1}
    total = new.outputs[1] if len(new.outputs) > 1 else x
    for reader in readers:
        own = ir.node("RMSNormalization", [total, norm.inputs[-1]], attributes, name=norm.name)
        own.outputs[0].shape = result.shape
        copy_dtype(result, own.outputs[0])
        graph.insert_before(reader, own)
        reader.replace_input_with(0, own.outputs[0])
    if len(norm.outputs) > 3:
        take_place(norm.outputs[3], new.outputs[1])
    graph.remove(norm, safe=True)
