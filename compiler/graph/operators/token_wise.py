"""Which part of a one-token step needs no state, and so may run over a whole chunk at once.

In: the graph of a step, as :mod:`.recurrence` takes it. Out: :class:`Partition` of its nodes:

    static   depends on weights and constants only              computed once
    before   token by token from the sequences, no state        computed for all tokens together
    core     reads or makes a state                             run token by token
    after    token by token from what the core makes, and no state comes from it

Input and output projections, most of a layer's work, land before and after. A node moves out only if it treats each
token by itself: a product with a weight, element-wise arithmetic, a norm or a split over the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

AXIS = 1
"""The axis of tokens of everything that moves out."""
# fmt: off
ELEMENTWISE = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Abs",
        "Sigmoid", "Tanh", "Relu", "Softplus", "Gelu", "Elu", "Swish", "HardSigmoid", "Erf", "Cast",
        "CastLike", "Identity", "Clip", "LeakyRelu", "Where",
    }
)
# fmt: on
LAST_AXIS = {"RMSNormalization": -1, "LayerNormalization": -1, "Softmax": -1, "Split": 0, "Concat": 0}
"""Operators over one axis, and what that axis is when it is not stated."""


@dataclass(frozen=True)
class Partition:
    """The four parts, each in graph order."""

    static: tuple[ir.Node, ...]
    before: tuple[ir.Node, ...]
    core: tuple[ir.Node, ...]
    after: tuple[ir.Node, ...]


def partition(
    nodes: Sequence[ir.Node],
    sequences: Sequence[ir.Value],
    weights: Sequence[ir.Value],
    states: Sequence[ir.Value],
    results: Sequence[ir.Value],
) -> Partition:
    """Divide the nodes of a step.

    Args:
        nodes: In graph order.
        sequences: Inputs with one token along :data:`AXIS`.
        weights: Inputs that are the same for all tokens.
        states: What the step makes of the states.
        results: What comes out for the token, along :data:`AXIS`; others are made in the core.
    """
    static: set[ir.Node] = set()
    fixed = set(weights)
    for node in nodes:
        if all(value is None or value in fixed or value.is_initializer() for value in node.inputs):
            static.add(node)
            fixed.update(node.outputs)
    moved = set(sequences)
    before: set[ir.Node] = set()
    for node in nodes:
        if node in static or not _is_token_wise(node, fixed):
            continue
        if all(value is None or value in moved or _is_fixed(value, fixed) for value in node.inputs):
            before.add(node)
            moved.update(node.outputs)
    needed = _ancestors(states)
    rest = [node for node in nodes if node not in static and node not in before]
    after = {node for node in rest if node not in needed and _is_token_wise(node, fixed)}
    while lost := {node for node in after if not _ends_outside(node, after, results)}:
        after -= lost
    core = tuple(node for node in rest if node not in after)
    return Partition(_pick(nodes, static), _pick(nodes, before), core, _pick(nodes, after))


def _pick(nodes: Sequence[ir.Node], chosen: set[ir.Node]) -> tuple[ir.Node, ...]:
    return tuple(node for node in nodes if node in chosen)


def _is_fixed(value: ir.Value | None, fixed: set[ir.Value]) -> bool:
    """Whether a value is a weight or constant, or made of such alone."""
    return value is None or value in fixed or value.is_initializer()


def _is_token_wise(node: ir.Node, fixed_values: set[ir.Value]) -> bool:
    """Whether a node does to each token, along axis 1 of its open inputs, the same and nothing else."""
    fixed = [_is_fixed(value, fixed_values) for value in node.inputs]
    shapes = [_shape(value) for value in node.inputs]
    rank = max((len(shape) for shape, known in zip(shapes, fixed, strict=True) if not known and shape), default=0)
    if node.domain or rank < 3 or any(_shape(output) is None for output in node.outputs if output.uses()):
        return False
    for shape, known in zip(shapes, fixed, strict=True):
        if not known and (shape is None or len(shape) != rank or shape[AXIS] != 1):
            return False
    if node.op_type in ELEMENTWISE:
        # A weight may reach the axis of tokens only by being 1 there.
        return all(not k or s is None or len(s) < rank or s[AXIS] == 1 for s, k in zip(shapes, fixed, strict=True))
    if node.op_type == "MatMul":
        return fixed == [False, True] and shapes[1] is not None and len(shapes[1]) == 2
    if node.op_type in LAST_AXIS:
        axis = node.attributes.get_int("axis", LAST_AXIS[node.op_type])
        others = fixed[1:] if node.op_type != "Concat" else [True]
        return not fixed[0] and all(others) and axis in {-1, rank - 1}
    return False


def _ends_outside(node: ir.Node, after: set[ir.Node], results: Sequence[ir.Value]) -> bool:
    """Whether all that uses a node's outputs runs after the core, too."""
    return all(use.node in after for output in node.outputs for use in output.uses()) and all(
        not output.is_graph_output() or output in results for output in node.outputs
    )


def _ancestors(values: Sequence[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    stack: list[ir.Value | None] = list(values)
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in found:
            found.add(node)
            stack.extend(node.inputs)
    return found


def _shape(value: ir.Value | None) -> list[int | ir.SymbolicDim] | None:
    return list(value.shape) if value is not None and value.shape is not None else None
