"""What is made of a value that is the same for all rows of a batch, once each row has its own.

In: a value [seq, width] that is about to become [batch, seq, width], or [1, seq, width] likewise.
Out: the edits that carry the rows to where the value meets the batch, or the node that has no place for them.

    Unsqueeze(v, [0, 1]) [1, 1, seq, width]   →   Unsqueeze(v, [1])            [batch, 1, seq, width]
    Reshape(v, [1, 1, seq, -1])               →   Reshape(v, [0, 1, seq, -1])
    Split, Concat, Slice, Transpose and arithmetic that leave the first axis alone stay as they are
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from llmc.passes.graph.graph_query import dims, integers, small_initializer

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Cast", "Identity", "Sin", "Cos"})
BESIDE = frozenset({"Split", "Concat", "Slice", "Transpose", "Unsqueeze", "Squeeze"})
"""Operators that leave the first axis alone where their own axes are others."""


@dataclass
class Spread:
    """Edits, in order.

    Attributes:
        values: What gets rows, besides the value itself.
        targets: Node -> its new second input: axes of an Unsqueeze, target of a Reshape.
        done: Nodes that made the axis of rows, which then is there already.
        lost: A node that has no place for rows; None when all have.
    """

    values: list[ir.Value] = field(default_factory=list)
    targets: dict[ir.Node, list[int]] = field(default_factory=dict)
    done: list[ir.Node] = field(default_factory=list)
    lost: ir.Node | None = None


def plan_spread(value: ir.Value) -> Spread:
    """Follow ``value`` to where it meets the batch."""
    spread = Spread()
    stack, seen = [value], {value}
    while stack and spread.lost is None:
        current = stack.pop()
        for use in current.uses():
            if not _follow(use.node, current, spread):
                spread.lost = use.node
                break
            for made in use.node.outputs:
                if made not in seen and _is_for_all(made):
                    seen.add(made)
                    spread.values.append(made)
                    stack.append(made)
    joined = {node for made in seen for node in [made.producer()] if node is not None and node.op_type == "Concat"}
    for node in joined:
        if spread.lost is None and any(item not in seen for item in node.inputs):
            spread.lost = node
    return spread


def apply_spread(graph: ir.Graph, spread: Spread, batch: int | ir.SymbolicDim) -> None:
    """Make the edits, and state the shapes that follow from them."""
    for node, numbers in spread.targets.items():
        name = "numbers_" + "_".join(str(number).replace("-", "m") for number in numbers)
        node.replace_input_with(1, small_initializer(graph, name, np.asarray(numbers, np.int64)))
    for value in spread.values:
        assert value.shape is not None
        shape = list(value.shape)
        value.shape = ir.Shape([batch, *shape] if len(shape) == 2 else [batch, *shape[1:]])
    for node in spread.done:
        source = node.inputs[0]
        assert source is not None
        node.outputs[0].replace_all_uses_with(source)
        graph.remove(node, safe=True)


def _is_for_all(value: ir.Value) -> bool:
    """[seq, width], or [1, …]: the same for all rows."""
    shape = dims(value)
    return shape is not None and (len(shape) == 2 or shape[0] == 1)


def _follow(node: ir.Node, value: ir.Value, spread: Spread) -> bool:
    """Whether a node has a place for rows, perhaps after an edit that is added to ``spread``."""
    _state_new_axes(node)
    shape, result = dims(value), dims(node.outputs[0])
    if node.domain or shape is None or result is None:
        return False
    if node.op_type in ELEMENTWISE:
        # Broadcasting counts axes from the last; [seq, width] finds its rows in front.
        return len(result) == len(shape) or (len(shape), len(result)) == (2, 3)
    axes = _axes(node)
    if len(shape) == 2:
        if node.op_type != "Unsqueeze" or axes is None or axes != list(range(len(axes))):
            return False
        if axes[1:]:
            spread.targets[node] = axes[1:]
        else:
            spread.done.append(node)
        return True
    if node.op_type == "Reshape":
        target = integers(node.inputs[1])
        if target is None or result[0] != 1 or target[0] not in {0, 1} or -1 in target[:1]:
            return False
        spread.targets[node] = [0, *target[1:]]
        return True
    rank = len(result) if node.op_type == "Unsqueeze" else len(shape)
    return node.op_type in BESIDE and axes is not None and all(axis % rank != 0 for axis in axes)


def _state_new_axes(node: ir.Node) -> None:
    """The shape that an Unsqueeze makes, where the exporter does not state it."""
    output, axes = node.outputs[0], _axes(node)
    shape = dims(node.inputs[0])
    if node.op_type != "Unsqueeze" or output.shape is not None or shape is None or axes is None:
        return
    rank = len(shape) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(shape)
    output.shape = ir.Shape([1 if place in new else next(rest) for place in range(rank)])


def _axes(node: ir.Node) -> list[int] | None:
    """The axes that an operator works along; for a Transpose those that move."""
    if node.op_type in {"Split", "Concat"}:
        return [node.attributes.get_int("axis", 0)]
    if node.op_type == "Transpose":
        perm = [int(axis) for axis in node.attributes.get_ints("perm", [])]
        return [axis for place, axis in enumerate(perm) if place != axis] if perm else None
    index = 3 if node.op_type == "Slice" else 1
    return integers(node.inputs[index]) if len(node.inputs) > index else None
