"""Two graphs of which a pass made the one from the other, compared node by node.

In: both graphs, and one row of tokens. Out: how far each value that both have is from what it should be, where the
nodes that make it read the same in both.

A pass keeps the name of what it does not touch, and gives what it fuses the name of what that made. So values of one
name and one shape correspond; what lies between them is compared as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import Contract
from llmc.compiler.ledger.forced_graph import GIVEN, called_values, expose, force, made_values
from llmc.compiler.ledger.inference import Array, call_feeds, held_after, keeps, load_graph, run_graph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FEW = 8
"""Features of which less say nothing of a gain."""


@dataclass(frozen=True)
class Side:
    """A graph with its weights in files, and how it wants to be called."""

    model: ir.Model
    contract: Contract


@dataclass(frozen=True)
class Deviation:
    """How far a value is from what it should be.

    Attributes:
        value: Its name.
        error: Largest error of an element, in units of that element's magnitude and the root mean square of all.
        gain: By how much all elements are too large, 0.01 for one percent.
        gain_error: Standard error of the gain, from feature to feature; infinite where these are too few to say.
    """

    value: str
    error: float
    gain: float
    gain_error: float


@dataclass(frozen=True)
class Call:
    """One call of both graphs, whose nodes read the same values.

    Attributes:
        feeds: Inputs of the graph before and of the graph after, without the values that are given.
        given: What the nodes of both read, by name of the value.
        expected, got: What the nodes of both made of it, by name.
    """

    feeds: tuple[Mapping[str, Array], Mapping[str, Array]]
    given: Mapping[str, Array]
    expected: Mapping[str, Array]
    got: Mapping[str, Array]

    def deviations(self, model: ir.Model) -> list[Deviation]:
        """Of each float value that both made, in the order in which ``model`` makes them."""
        result = []
        for name in (value.name or "" for value in made_values(model.graph)):
            if name in self.expected and name in self.got:
                pair = _comparable(self.expected[name], self.got[name])
                if pair is not None:
                    result.append(Deviation(name, *distance(*pair)))
        return result


def compare_nodes(before: Side, after: Side, tokens: Array, *, noise: bool) -> Iterator[Call]:
    """Run one row through both graphs: half of it at once, some more of it, a single token; a call after the other.

    Args:
        before: Gives what nodes read.
        after: Is compared with it.
        tokens: [length] int64.
        noise: Nodes read random numbers as large as the values in their place. What quantizing does to a product
            then shows in its gain: activations are large in few places, where one weight's rounding tells.

    Raises:
        EngineError: one of the graphs does not run.
    """
    exposed = [load_graph(expose(side.model)) for side in (before, after)]
    called = called_values(before.model.graph) & called_values(after.model.graph)
    past: dict[str, Array] = {}
    for part in np.split(tokens, [len(tokens) // 2, len(tokens) - 1]):
        if not keeps(exposed[1], past):
            return
        sides = list(zip(exposed, (before, after), strict=True))
        feeds = [call_feeds(inference, side.contract, part, past) for inference, side in sides]
        values = [run_graph(inference, fed) for inference, fed in zip(exposed, feeds, strict=True)]
        past = held_after(exposed[0], past, len(part), values[0])
        given = {name: values[0][name] for name in called if _corresponds(values[0][name], values[1].get(name))}
        types = [{name: each[name].dtype for name in given} for each in values]
        expected = values[0]
        del values
        if noise:
            given = {name: _noise(value, number) for number, (name, value) in enumerate(given.items())}
            expected = _run_forced(before.model, types[0], feeds[0], given)
        yield Call((feeds[0], feeds[1]), given, expected, _run_forced(after.model, types[1], feeds[1], given))


def given_feeds(
    inference: InferenceSession, feeds: Mapping[str, Array], given: Mapping[str, Array], types: Mapping[str, np.dtype]
) -> dict[str, Array]:
    """Inputs of a forced graph, or of a part of one: a call's own and what is given, in the types that it has."""
    values = {name + GIVEN: given[name].astype(kind, copy=False) for name, kind in types.items()}
    wanted = {item.name for item in inference.get_inputs()}
    return {name: value for name, value in {**feeds, **values}.items() if name in wanted}


def distance(expected: Array, got: Array) -> tuple[float, float, float]:
    """Largest error in units of an element's magnitude and the root mean square of all; the gain; its standard error.

    Args:
        expected, got: Floats of one shape.
    """
    real = _is_real(expected)
    left, right = np.where(real, expected, 0).astype(np.float64), np.where(real, got, 0).astype(np.float64)
    if not np.isfinite(right).all():
        return float("inf"), float("inf"), 0.0
    count, power = max(1, int(real.sum())), float(np.square(left).sum())
    difference, magnitude = right - left, np.abs(left) + np.sqrt(power / count)
    worst = float((np.abs(difference) / np.where(magnitude > 0, magnitude, 1)).max())
    if not power or left.ndim < 2:
        return worst, 0.0, float("inf")
    # Each feature has weights of its own, so that what rounding did to one says nothing of the next.
    columns = tuple(range(left.ndim - 1))
    gain = float((left * difference).sum() / power)
    strays = (left * difference).sum(columns) - gain * np.square(left).sum(columns)
    return worst, gain, float(np.sqrt(np.square(strays).sum()) / power) if strays.size >= FEW else float("inf")


def _run_forced(
    model: ir.Model, types: Mapping[str, np.dtype], feeds: Mapping[str, Array], given: Mapping[str, Array]
) -> dict[str, Array]:
    inference = load_graph(force(model, types))
    return run_graph(inference, given_feeds(inference, feeds, given, types))


def _noise(value: Array, number: int) -> Array:
    """Random numbers as large as the finite ones of ``value``, which stays where it is none of those."""
    real = _is_real(value)
    root = np.sqrt(np.square(value[real], dtype=np.float64).mean()) if real.any() else 0.0
    random = np.random.default_rng(number).standard_normal(value.shape) * root
    return np.where(real, random, value).astype(value.dtype)


def _is_real(value: Array) -> npt.NDArray[np.bool_]:
    """Where elements are numbers: what is masked is minus infinity, or as good as that."""
    real: npt.NDArray[np.bool_] = np.isfinite(value) & (np.abs(value) < np.finfo(value.dtype).max / 2)
    return real


def _is_float(value: Array | None) -> bool:
    return value is not None and value.dtype in (np.float32, np.float16)


def _corresponds(value: Array, other: Array | None) -> bool:
    return _is_float(value) and _is_float(other) and other is not None and value.shape == other.shape


def _comparable(expected: Array, got: Array) -> tuple[Array, Array] | None:
    """Both, where they are floats of one shape; the last token's of all where the other has no more."""
    if expected.ndim == got.ndim == 3 and got.shape[1] == 1:
        expected = expected[:, -1:]
    return (expected, got) if _corresponds(expected, got) else None
