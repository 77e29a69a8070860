"""A float offset per block of a quantized weight, for runtimes whose products know scales alone.

    product   →   Add(product, MatMul(sums of x by block, offsets))
              or  Add(product, MatMul(means of x by block, offsets x block size)): where a sum may overflow float16

The offset of a block is added to each of its weights, so what it adds to the product is itself times the sum of the
block's inputs. Layers that read the same input share its sums.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.passes.graph.graph_query import copy_dtype, producer, small_initializer

BLOCK_SUMS = "llmc.block_sums"
"""Marks the Reshape that splits activations into blocks, so that layers with the same input share it."""


def add_offsets(
    graph: ir.Graph, node: ir.Node, product: ir.Node, offsets: ir.Value, block_size: int, *, means: bool = False
) -> list[ir.Node]:
    """Nodes for ``product + (sums of x over each block) · offsets``; the last one makes the result.

    Args:
        graph: Gets constants.
        node: The product as it was, whose first input is x and whose name the new nodes have.
        product: The product without offsets.
        offsets: [blocks, out] initializer; ``block_size`` times as large where ``means`` is set.
        block_size: Input features that share an offset.
        means: Multiply with the means of blocks instead of their sums.
    """
    x = node.inputs[0]
    assert x is not None
    assert offsets.const_value is not None
    blocks = int(offsets.const_value.shape.numpy()[0])
    nodes: list[ir.Node] = []
    known = [use.node for use in x.uses() if use.node.metadata_props.get(BLOCK_SUMS) == str(block_size)]
    if known:
        sums = next(iter(known[0].outputs[0].uses())).node
    else:
        rank = len(x.shape) if x.shape is not None else 3
        shape = [*[0] * (rank - 1), blocks, block_size]
        target = small_initializer(graph, "shape_" + "_".join(map(str, shape)), np.asarray(shape, np.int64))
        axis = small_initializer(graph, f"axis_{rank}", np.asarray([rank], np.int64))
        by_block = ir.node("Reshape", [x, target], name=f"{node.name}/blocks")
        by_block.metadata_props[BLOCK_SUMS] = str(block_size)
        reduce = "ReduceMean" if means else "ReduceSum"
        sums = ir.node(reduce, [by_block.outputs[0], axis], {"keepdims": 0}, name=f"{node.name}/block_sums")
        nodes = [by_block, sums]
    correction = ir.node("MatMul", [sums.outputs[0], offsets], name=f"{node.name}/offsets")
    total = ir.node("Add", [product.outputs[0], correction.outputs[0]], name=f"{node.name}/Add")
    for made in (*nodes, correction, total):
        copy_dtype(x, made.outputs[0])
    return [*nodes, correction, total]


def is_correction(node: ir.Node) -> bool:
    """Whether a product is what :func:`add_offsets` added."""
    sums = producer(node.inputs[0])
    if sums is None or sums.op_type not in {"ReduceSum", "ReduceMean"}:
        return False
    by_block = producer(sums.inputs[0], "Reshape")
    return by_block is not None and BLOCK_SUMS in by_block.metadata_props
