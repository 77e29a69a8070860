"""Norms into llmc's own CPU products.

    n, t = SkipSimplifiedLayerNormalization(x, r, w)       y1, t = llmc.cpu::MatMulNBits(x, gamma = w, skip = r)
    y1 = llmc.cpu::MatMulNBits(n)                     →    y2 = llmc.cpu::MatMulNBits(t, gamma = w)
    y2 = llmc.cpu::MatMulNBits(n)

    n = RMSNormalization(x, w)                        →    y1 = llmc.cpu::MatMulNBits(x, gamma = w), y2 likewise

In: a graph whose products are llmc's. A norm moves where products are all that reads it: into each of them, which
costs less than a node and rows of floats between. The first one adds the residual, the others read its sum.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu
from llmc.compiler.graph.operators.microsoft import SKIP_NORM
from llmc.passes.graph.graph_query import copy_dtype, dims, replace_node, take_place


def move_norms(graph: ir.Graph) -> None:
    """Move every norm that the operator computes, too."""
    places = {node: place for place, node in enumerate(graph)}
    for norm in [node for node in graph if _is_norm(node)]:
        result = norm.outputs[0]
        readers = {use.node for use in result.uses()}
        if readers and not result.is_graph_output() and all(_takes(reader, norm) for reader in readers):
            _move(graph, norm, sorted(readers, key=lambda reader: places[reader]))


def _is_norm(node: ir.Node) -> bool:
    """Whether a node is a norm over the last axis, perhaps of a sum."""
    if SKIP_NORM.is_call(node) and len(node.inputs) == 3:
        return not _is_broadcast(*node.inputs[:2])
    is_plain = node.op_type == "RMSNormalization" and not node.domain
    last = node.attributes.get_int("axis", -1) in {-1, 2}
    shape = node.outputs[0].shape
    return is_plain and last and shape is not None and len(shape) == 3


def _is_broadcast(x: ir.Value | None, skip: ir.Value | None) -> bool:
    """Whether a residual is known to be smaller than what it is added to."""
    mine, theirs = dims(x), dims(skip)
    if mine is None or theirs is None:
        return False
    return len(mine) != len(theirs) or any(b == 1 and a != 1 for a, b in zip(mine, theirs, strict=True))


def _takes(reader: ir.Node, norm: ir.Node) -> bool:
    """Whether a node is a product that can compute a norm of its input."""
    width = dims(norm.inputs[-1])
    return (
        cpu.MATMUL.is_call(reader)
        and cpu.MATMUL.get(reader, "a") is norm.outputs[0]
        and cpu.MATMUL.get(reader, "gamma") is None
        and width in (None, [reader.attributes.get_int("K", 0)])
    )


def _move(graph: ir.Graph, norm: ir.Node, readers: list[ir.Node]) -> None:
    # The norm's weight is its last input, after the residual where there is one.
    x, *residual, gamma = norm.inputs
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    for reader in readers:
        skip = residual[0] if residual else None
        inputs = {**cpu.MATMUL.arguments(reader), "a": x, "gamma": gamma, "skip": skip}
        attributes = {**reader.attributes, "epsilon": epsilon}
        new = cpu.MATMUL.make(inputs, attributes, num_outputs=2 if residual else 1, name=reader.name)
        replace_node(reader, [new], new.outputs[:1])
        if residual:
            x, residual = new.outputs[1], []
            copy_dtype(norm.outputs[0], x)
            if len(norm.outputs) > 3:
                take_place(norm.outputs[3], x)
    graph.remove(norm, safe=True)
