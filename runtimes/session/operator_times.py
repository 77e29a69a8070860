"""How long the operators of a graph took, run by run.

In: nothing. Out: records, which a runtime's own profiler fills.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class RunTime:
    """One run of a graph.

    Attributes:
        seconds: Of the whole run.
        operators: Seconds by operator type, all its nodes together.
        calls: Nodes that ran, by operator type.
    """

    seconds: float
    operators: dict[str, float]
    calls: dict[str, int]


EndProfile = Callable[[], list[RunTime]]
"""Ends the profile of a session that still stands; all its runs, in order."""
