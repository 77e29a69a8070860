"""What a graph shows about the weights that a router gives to its experts.

In: a value. Out: whether every element is known to be at least 0, and whether every row is known to sum to 1. Both
follow from the operators that make the value; where these do not tell, the answer is no.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.passes.graph.graph_query import constant, dims, integers, producer

#: Operators whose results are at least 0 whatever comes in.
_NEVER_NEGATIVE = frozenset({"Softmax", "Sigmoid", "Exp", "Relu", "Softplus", "Abs", "Sqrt", "ReduceL1", "ReduceL2"})
#: Operators whose results are elements of their first input, or sums, means or powers of these.
_OF_THE_FIRST = frozenset(
    {
        *("Cast", "Expand", "Gather", "GatherElements", "GatherND", "Identity", "Pow", "ReduceMax", "ReduceMean"),
        *("ReduceMin", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "TopK", "Transpose", "Unsqueeze"),
    }
)
#: Operators between a router's product and the choice of experts.
BETWEEN = _NEVER_NEGATIVE | _OF_THE_FIRST - {"TopK"} | frozenset({"Add", "Sub", "Mul", "Div", "Where", "Neg", "Tanh"})
#: Operators whose results are at least 0 where all of these inputs are; None stands for every input.
_OF_ALL: dict[str, tuple[int, ...] | None] = {
    "Add": None,
    "Concat": None,
    "Div": None,
    "Min": None,
    "Mul": None,
    "ScatterElements": (0, 2),
    "Where": (1, 2),
}


def is_nonnegative(value: ir.Value | None) -> bool:
    """Whether no element can be below 0."""
    if value is None:
        return False
    if value.dtype == ir.DataType.BOOL:
        return True
    array, node = constant(value), producer(value)
    if array is not None:
        return bool((array >= 0).all())
    if node is None or node.domain:
        return False
    kind = node.op_type
    if kind in _NEVER_NEGATIVE or (kind == "Mul" and node.inputs[0] is node.inputs[1]):
        return True
    if kind in _OF_THE_FIRST:
        return (value is node.outputs[0] or kind == "Split") and is_nonnegative(node.inputs[0])
    if kind in {"Max", "Clip"}:
        # Of a Clip the first two: the larger of the input and of the lower limit.
        return any(is_nonnegative(item) for item in (node.inputs[:2] if kind == "Clip" else node.inputs))
    if kind in _OF_ALL:
        positions = _OF_ALL[kind]
        parts = node.inputs if positions is None else [node.inputs[index] for index in positions]
        return all(is_nonnegative(part) for part in parts)
    return False


def sums_to_one(value: ir.Value | None) -> bool:
    """Whether the last axis is known to sum to 1: a softmax over it, or a division by its sum."""
    shape, node = dims(value), producer(value)
    while node is not None and node.op_type in {"Cast", "Identity"}:
        node = producer(node.inputs[0])
    # The exporter gives no shape to some values; that of their cast is as good.
    if node is None or not shape:
        return False
    last = {-1, len(shape) - 1}
    if node.op_type == "Softmax":
        return node.attributes.get_int("axis", -1) in last
    total = producer(node.inputs[1], "ReduceSum") if node.op_type == "Div" else None
    if total is None or total.inputs[0] is not node.inputs[0] or len(total.inputs) < 2:
        return False
    axes = integers(total.inputs[1])
    return axes is not None and len(axes) == 1 and axes[0] in last and total.attributes.get_int("keepdims", 1) == 1


def chooses_experts(product: ir.Node) -> bool:
    """Whether a matrix product makes the scores from which experts are chosen: element by element, they reach TopK.

    A router is a small part of a layer, and a score that is rounded sends a token to another expert.
    """
    seen: set[ir.Node] = set()
    stack = [product]
    while stack:
        for value in stack.pop().outputs:
            for use in value.uses():
                if use.node.op_type == "TopK":
                    return True
                if use.node.op_type in BETWEEN and use.node not in seen:
                    seen.add(use.node)
                    stack.append(use.node)
    return False
