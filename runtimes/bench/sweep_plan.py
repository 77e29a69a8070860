"""Measures how a step's time grows (sweep.py).

In: subjects, numbers of tokens. Out: the report with a :class:`~.sweep.Sweep`, a point per subject and number,
measured as the cases of a benchmark are: in rounds in which the subjects take turns. A subject that has no room for a
point is left out of it, in a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.analysis import decode_rate, step_bytes, step_ms
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, Subject
from llmc.runtimes.bench.rounds import Rounds, Steps, count_steps
from llmc.runtimes.bench.sweep import Sweep, SweepPoint, slow_steps
from llmc.runtimes.machine.summary import Summary

CURVE_TOKENS = (1, 2, 3, 4, 8, 16, 32)
CURVE_PAST = 32
"""Tokens of each row before the steps of the curve."""
STEPS = 16
"""Timed steps of a run."""
CURVE, CONTEXTS = "curve", "contexts"
"""Fields of the report."""


def curve_case(tokens: int) -> BenchCase:
    """So many rows with a short past."""
    return BenchCase(CURVE_PAST, STEPS + 1, tokens)


def context_case(tokens: int) -> BenchCase:
    """One row whose last step has ``tokens`` tokens in its cache.

    Raises:
        UsageError: they are no more than the steps themselves.
    """
    if tokens <= STEPS:
        raise UsageError(f"bench: a context of {tokens} tokens is shorter than the steps; give more than {STEPS}")
    return BenchCase(tokens - STEPS, STEPS + 1)


@dataclass(frozen=True)
class SweepPlan:
    """Asks for a sweep.

    Attributes:
        key: ``curve`` or ``contexts``.
        cases: By number of tokens.
    """

    key: str
    cases: Mapping[int, BenchCase]

    @classmethod
    def curve(cls, tokens: Sequence[int] = CURVE_TOKENS) -> SweepPlan:
        """Steps of so many tokens."""
        return cls(CURVE, {count: curve_case(count) for count in sorted(tokens)})

    @classmethod
    def contexts(cls, tokens: Sequence[int]) -> SweepPlan:
        """Steps behind so many tokens.

        Raises:
            UsageError: as :func:`context_case`.
        """
        return cls(CONTEXTS, {count: context_case(count) for count in sorted(tokens)})

    def count_steps(self, subjects: Sequence[Subject], options: BenchOptions) -> int:
        """As many as all points have for all subjects, but for what is left out."""
        return count_steps(subjects, list(self.cases.values()), _options(options))

    def extended(self, report: BenchReport, subjects: Sequence[Subject], steps: Steps) -> BenchReport:
        """Measure every point for those who have room for it, points with the same subjects together."""
        infos = {subject.label: subject.info for subject in report.subjects}
        remarks: list[str] = []
        groups: dict[tuple[Subject, ...], dict[int, BenchCase]] = {}
        for tokens, case in self.cases.items():
            refusals = {subject: no_room(infos[subject.label], case) for subject in subjects}
            remarks += [f"{who.label} is left out at {tokens}: {why}" for who, why in refusals.items() if why]
            fitting = tuple(subject for subject, why in refusals.items() if not why)
            groups.setdefault(fitting, {})[tokens] = case
        points: list[SweepPoint] = []
        for fitting, cases in groups.items():
            if fitting:
                measured, refused = _measure(fitting, cases, report.options, steps, infos)
                points += measured
                remarks += refused
        points.sort(key=lambda point: point.tokens)
        cliffs = slow_steps(points) if self.key == CURVE else []
        sweep = Sweep(tuple(points), (*remarks, *cliffs))
        return replace(report, curve=sweep) if self.key == CURVE else replace(report, contexts=sweep)


def _options(options: BenchOptions) -> BenchOptions:
    """Those of a sweep: no process for memory alone, no requests, no texts."""
    return replace(options, measure_memory=False, generate=0, mode="tokens")


def no_room(info: Mapping[str, Any], case: BenchCase) -> str:
    """Why a subject cannot run a case; empty where it can."""
    needed, context, most = case.prompt + case.gen - 1, info.get("max_context"), info.get("max_batch")
    if context and needed > context:
        return f"its context is {context} tokens"
    if most is not None and case.batch > most:
        return f"it was built for {most} rows"
    return ""


def _measure(
    subjects: Sequence[Subject],
    cases: Mapping[int, BenchCase],
    options: BenchOptions,
    steps: Steps,
    infos: Mapping[str, Mapping[str, Any]],
) -> tuple[list[SweepPoint], list[str]]:
    """The points, and remarks on those that a peer refused."""
    rounds = Rounds(subjects, list(cases.values()), _options(options), steps)
    rounds.measure()
    points = []
    for tokens, case in cases.items():
        for subject in subjects:
            if (subject.label, case) in rounds.refusals:
                continue
            samples = rounds.samples[subject.label, case]
            each = Summary.of([step_ms(sample) for sample in samples])
            rates = Summary.of([decode_rate(case, sample) for sample in samples])
            size, raw = step_bytes(infos[subject.label], case), tuple(sample.step_s for sample in samples)
            points.append(SweepPoint(subject.label, tokens, each, rates, size, raw))
    by_case = {case: tokens for tokens, case in cases.items()}
    refused = [f"{who} is left out at {by_case[case]}: {why}" for (who, case), why in rounds.refusals.items()]
    return points, refused
