"""What a gate measured and decided, as the benchmark's document keeps it under ``gate``.

In: nothing. Out: :class:`GateRecord` and its parts. A case is named as in the document (``pp128+tg64``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["failed", "passed", "undecided"]


@dataclass(frozen=True)
class StartRecord:
    """One subject's figures of one case in one of its processes.

    Attributes:
        label: The subject.
        start: Number of the process, from 0; of two subjects those with the same number ran together.
        figures: Medians over the process's runs, by metric, in the metric's unit.
    """

    label: str
    case: str
    start: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class ComparisonRecord:
    """One comparison of a condition in one case.

    Attributes:
        text: As ``decode_tps < 0.97*baseline``.
        of_baseline: ``estimate``, ``low``, ``high`` and ``limit`` are ratios to the baseline; else in the metric's
            unit.
        below: Holds where the figure is below the limit; else above it.
        holds: Whether it does; None: undecided.
        low, high: Bounds at the last look; None where there were too few starts for one.
        starts: How many the last look saw.
    """

    text: str
    case: str
    metric: str
    of_baseline: bool
    below: bool
    limit: float
    holds: bool | None
    estimate: float
    low: float | None
    high: float | None
    starts: int


@dataclass(frozen=True)
class ConditionRecord:
    """One ``--fail-if``.

    Attributes:
        text: As it was typed.
        outcome: ``failed``: it holds in some case; ``passed``: in none; ``undecided``: in none for certain.
        failed_in: Cases in which it holds.
    """

    text: str
    outcome: Outcome
    failed_in: tuple[str, ...]
    comparisons: tuple[ComparisonRecord, ...]


@dataclass(frozen=True)
class GateRecord:
    """A whole gate.

    Attributes:
        outcome: ``failed`` where a condition did, else ``undecided`` where one is, else ``passed``.
        conditions: Each ``--fail-if``; none where starts were only recorded, as a baseline for later.
        candidate: Label of the subject that is judged.
        baseline: Label of the subject or the file that it is compared with; empty without one.
        paired: The baseline ran in the same run, in turn with the candidate.
        starts: Processes of each subject.
        most_starts, most_seconds: The limits.
        seconds: That the starts took.
        error: Probability, at most, that an outcome is ``failed`` where no condition holds, and that it is ``passed``
            where one does: each.
        measured: The figures of every process.
        unit: What ``starts`` counts: processes, or ``repeats`` of a load.
    """

    outcome: Outcome
    conditions: tuple[ConditionRecord, ...]
    candidate: str
    baseline: str
    paired: bool
    starts: int
    most_starts: int
    most_seconds: float
    seconds: float
    error: float
    measured: tuple[StartRecord, ...]
    unit: str = "starts"
