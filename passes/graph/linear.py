"""A linear layer in a graph: a matrix product with a constant weight, and perhaps a bias.

In: the value that it makes. Out: :class:`Linear`; and several of them stacked into one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import LazyWeight, StackedWeight, TensorWeight, as_weight
from llmc.passes.graph.graph_query import (
    add_initializer,
    both_ways,
    copy_dtype,
    insert_before,
    is_weight,
    only_consumer,
    producer,
)
from llmc.passes.graph_pass import NearMiss


@dataclass(frozen=True)
class Linear:
    """``output = x · weight (+ bias)``.

    Attributes:
        x: Input, [..., in_features].
        weight: [in_features, out_features] initializer.
        bias: [out_features] initializer, or None.
        output: What the layer makes.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value


def linear_of(value: ir.Value | None) -> Linear | None:
    """The linear layer that makes ``value``; None when something else does."""
    if value is None:
        return None
    bias, product = None, producer(value, "MatMul")
    if product is None and (add := producer(value, "Add")) is not None:
        for side, other in both_ways(add):
            inner = producer(side, "MatMul")
            if inner is not None and is_weight(other) and only_consumer(inner.outputs[0]) is add:
                product, bias = inner, other
    if product is None:
        return None
    x, weight = product.inputs
    if x is None or weight is None or not is_weight(weight) or weight.shape is None or len(weight.shape) != 2:
        return None
    if bias is not None and (bias.shape is None or list(bias.shape) != [weight.shape[1]]):
        return None
    return Linear(x, weight, bias, value)


def stored_weight(value: ir.Value) -> LazyWeight:
    """A [in, out] initializer as a lazy weight that reads [out, in] rows."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, LazyWeight) and tensor.transposed:
        return tensor
    return TensorWeight(tensor, tensor.dtype, transposed=True)


def upright_weight(value: ir.Value) -> LazyWeight:
    """An initializer as a lazy weight that reads rows of the shape that it has, whichever way it is stored."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, LazyWeight) and tensor.transposed:
        return TensorWeight(tensor, tensor.dtype, transposed=False)
    return as_weight(tensor)


def product_weight(node: ir.Node) -> tuple[str, LazyWeight] | None:
    """Name and [out, in] rows of the constant that a MatMul multiplies with."""
    right = node.inputs[1]
    if right is None:
        return None
    if is_weight(right) and right.shape is not None and len(right.shape) == 2:
        return right.name or "weight", stored_weight(right)
    transpose = producer(right, "Transpose")
    swaps = transpose is not None and list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0]
    source = transpose.inputs[0] if transpose is not None and swaps else None
    tensor = source.const_value if source is not None and is_weight(source) else None
    if source is not None and tensor is not None and len(tensor.shape) == 2:
        return source.name or "weight", upright_weight(source)
    return None


def added_bias(node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """A bias that is added right after a product, and the node that makes the layer's result."""
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not uses[0].node.domain:
        linear = linear_of(uses[0].node.outputs[0])
        if linear is not None and linear.bias is not None:
            return linear.bias, uses[0].node
    return None, node


def stack_linears(graph: ir.Graph, before: ir.Node, linears: Sequence[Linear], name: str) -> ir.Value:
    """One linear layer whose output is the concatenation of the others'; returns that output.

    Raises:
        NearMiss: they do not read the same input, or only some have a bias.
    """
    first = linears[0]
    if any(linear.x is not first.x for linear in linears):
        raise NearMiss("its projections do not read the same input")
    if len({linear.bias is None for linear in linears}) != 1:
        raise NearMiss("only some of its projections have a bias")
    # ``model.layers.0.self_attn.`` of q_proj, k_proj and v_proj.
    columns = zip(*(linear.weight.name or "" for linear in linears), strict=False)
    common = "".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    stem = common[: common.rfind(".") + 1]
    stacked = StackedWeight([stored_weight(linear.weight) for linear in linears], transposed=True)
    weight = add_initializer(graph, f"{stem}{name}.weight", stacked)
    node = ir.node("MatMul", [first.x, weight], name=f"{stem}{name}/MatMul")
    nodes, result = [node], node.outputs[0]
    if first.bias is not None:
        parts = [as_weight(linear.bias.const_value) for linear in linears if linear.bias and linear.bias.const_value]
        bias = add_initializer(graph, f"{stem}{name}.bias", StackedWeight(parts, transposed=False))
        nodes.append(ir.node("Add", [result, bias], name=f"{stem}{name}/Add"))
        result = nodes[-1].outputs[0]
    width = stacked.stored_shape[0]
    for made in nodes:
        copy_dtype(first.output, made.outputs[0])
        if first.output.shape is not None:
            made.outputs[0].shape = ir.Shape([*list(first.output.shape)[:-1], width])
    insert_before(before, nodes)
    return result
