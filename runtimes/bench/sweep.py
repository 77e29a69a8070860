"""How a step's time grows: with the tokens of a step, and with the tokens that lie behind it.

In: nothing. Out: records of a sweep, and what is to be said of its points.

    curve      n rows at a time, each with a short past: a step of n tokens. Where a step is slower than two steps of
               half as many tokens, a kernel for small batches is missing, and a remark says so.
    contexts   one row, whose steps end with so many tokens in its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtimes.machine.summary import Summary

CLIFF = 1.1
"""A step is called slower than two of half as many tokens where it takes so many times as long as they."""


@dataclass(frozen=True)
class SweepPoint:
    """One subject at one number of tokens.

    Attributes:
        tokens: Of a step (curve), or in the cache behind the last step (contexts).
        step_ms: Mean of a run's steps, over the runs.
        tokens_per_s: Of all rows.
        bytes: That a step reads, of weights and cache; 0: not known.
        samples_s: Every step of every run, [runs][steps].
    """

    label: str
    tokens: int
    step_ms: Summary
    tokens_per_s: Summary
    bytes: int
    samples_s: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Sweep:
    """All points.

    Attributes:
        points: By number of tokens, then by subject.
        remarks: Who was left out of what and why, and which steps are slower than they need be, one sentence each.
    """

    points: tuple[SweepPoint, ...]
    remarks: tuple[str, ...]


def slow_steps(points: Sequence[SweepPoint]) -> list[str]:
    """Steps that take longer than two steps of half as many tokens, one sentence each."""
    medians = {(point.label, point.tokens): point.step_ms.median for point in points}
    sentences = []
    for (label, tokens), median in medians.items():
        half = medians.get((label, tokens // 2))
        if tokens % 2 == 0 and half is not None and median > CLIFF * 2 * half:
            sentences.append(
                f"{label}: a step of {tokens} tokens takes {median:.2f} ms, longer than two of {tokens // 2} "
                f"({half:.2f} ms each)"
            )
    return sentences
