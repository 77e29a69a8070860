"""The node where a pass went wrong.

In: the graphs before and after it, and what it may cost. Out: :class:`Culprit`: a value that is not what it should be
although what makes it read the right numbers, and the call in which that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from llmc.compiler.ledger.forced_graph import changed_nodes, force, segment
from llmc.compiler.ledger.inference import Array
from llmc.compiler.ledger.node_comparison import Call, Deviation, Side, compare_nodes
from llmc.passes.graph_pass import Loss, node_label

ROUNDING = 1e-4
"""Error of one node, or of a few that were fused, in another order of float32 sums; 3e-6 is what happens."""
GAIN = 4e-3
"""What lowers floats or quantizes errs to both sides: all elements together are not larger or smaller by this much.
Below 1e-3 is what happens in half precision and 8 bits."""
CERTAIN = 6.0
"""Fewer bits err more. A gain stands out that is so many standard errors from the median of all gains, and so many
times as far from it as half of them are."""
FEWEST = 4
"""Gains of which fewer have none in common."""
EXACT = {np.dtype(np.float32): 2e-3, np.dtype(np.float16): 0.05}
"""Error of one node that computes with the very numbers that it is compared with, in the order of its operator."""
LARGE = {Loss.FLOATS: 0.1}
"""Error of one node in half precision; 1.3e-2 is what happens. Numbers of few bits have no such limit."""


@dataclass(frozen=True)
class Limits:
    """How far a value may be from what it should be.

    Attributes:
        error: Of one element, as :class:`Deviation` has it.
        gain: Of all, as far as it is not ``usual``.
        usual: The gain of most values.
    """

    error: float
    gain: float
    usual: float = 0.0

    @classmethod
    def of(cls, loss: Loss, deviations: Sequence[Deviation]) -> Limits:
        """For a pass that may cost so much, and did this to the values that both graphs have."""
        if loss is Loss.ROUNDING:
            return cls(ROUNDING, ROUNDING)
        if loss is Loss.CALIBRATED:
            return cls(float(np.finfo(np.float64).max), float("inf"))
        gains = np.asarray([item.gain for item in deviations if item.gain])
        if gains.size < FEWEST:
            return cls(LARGE.get(loss, float("inf")), GAIN)
        usual = float(np.median(gains))
        spread = float(np.median(np.abs(gains - usual)))
        return cls(LARGE.get(loss, float("inf")), max(GAIN, CERTAIN * spread), usual)

    def hold(self, item: Deviation) -> bool:
        """Whether a value is near enough, or not surely too far; what is not a number is not."""
        if item.error == 0 or not item.error <= self.error:
            return item.error == 0
        return abs(item.gain - self.usual) <= max(self.gain, CERTAIN * item.gain_error)


@dataclass(frozen=True)
class Culprit:
    """What a pass made wrong.

    Attributes:
        deviation: Of the value.
        limits: What would have been accepted.
        nodes: Those of the graph after the pass that make the value and are not as they were.
        parts: The graphs before and after the pass, cut around them.
        call: What both were fed, and gave.
    """

    deviation: Deviation
    limits: Limits
    nodes: tuple[str, ...]
    parts: tuple[ir.Model, ir.Model]
    call: Call


def find_culprit(
    before: Side, after: Side, tokens: Array, loss: Loss, exact: Collection[str] = frozenset()
) -> Culprit | None:
    """Compare both graphs node by node, call by call, until one of them shows it.

    Args:
        before: The graph that the pass was given.
        after: The graph that it left.
        tokens: One row, [length] int64.
        loss: What it may cost.
        exact: Values of which nothing but the order of sums is another one, whatever others may cost.

    Raises:
        EngineError: one of the graphs does not run.
    """
    for call in compare_nodes(before, after, tokens, noise=loss is Loss.NUMBERS):
        deviations = call.deviations(after.model)
        usual = Limits.of(loss, deviations)
        for item in deviations:
            limits = Limits(EXACT[call.got[item.value].dtype], GAIN) if item.value in exact else usual
            if limits.hold(item):
                continue
            found = _culprit(before, after, call, item, limits)
            # Where one of them reads what the other does not, random numbers contradict each other.
            if loss is Loss.NUMBERS and _read(found.parts[0]) != _read(found.parts[1]):
                continue
            return found
    return None


def find_worst(before: Side, after: Side, other: Side, tokens: Array, values: Collection[str]) -> Culprit | None:
    """The value that ``after`` errs most in, beside what ``other`` errs there, on what a text makes nodes read.

    Args:
        before: The graph from which both were made.
        after: The one that lost too much.
        other: The one that lost less.
        tokens: One row, [length] int64.
        values: Among which it is.

    Returns:
        None where none errs more.

    Raises:
        EngineError: one of the graphs does not run.
    """
    calls = (compare_nodes(before, side, tokens, noise=False) for side in (after, other))
    worst: tuple[float, Call, Deviation, float] | None = None
    for call, beside in zip(*calls, strict=False):
        accepted = {item.value: item.error for item in beside.deviations(other.model)}
        for item in call.deviations(after.model):
            times = item.error / max(accepted.get(item.value, math.inf), ROUNDING)
            if item.value in values and times > (1 if worst is None else worst[0]):
                worst = times, call, item, accepted[item.value]
    if worst is None:
        return None
    _, call, item, limit = worst
    return _culprit(before, after, call, item, Limits(max(limit, ROUNDING), float("inf")))


def _culprit(before: Side, after: Side, call: Call, item: Deviation, limits: Limits) -> Culprit:
    parts = _parts(before, after, call, item.value)
    nodes = changed_nodes(*parts) or [node for node in parts[1].graph if _makes(node, item.value)]
    return Culprit(item, limits, tuple(map(node_label, nodes)), parts, call)


def _parts(before: Side, after: Side, call: Call, value: str) -> tuple[ir.Model, ir.Model]:
    types = [{name: values[name].dtype for name in call.given} for values in (call.expected, call.got)]
    left, right = (force(side.model, each) for side, each in zip((before, after), types, strict=True))
    return segment(left, value), segment(right, value)


def _read(part: ir.Model) -> set[str | None]:
    return {value.name for value in part.graph.inputs}


def _makes(node: ir.Node, value: str) -> bool:
    return any(output.name == value for output in node.outputs)
