"""Measures until conditions are decided.

In: an engine, what it is compared with, cases, options. Out: a benchmark's report whose ``gate`` says what was
decided.

    for each start: both engines in fresh processes, warmed up, --runs runs in turn, closed     -> a figure each
                    the one that goes first goes second in the next start
                    after some starts (error_budget.py): a look; decided, out of starts or of time: the end

A start is the unit of which an interval is made, not a run: a process keeps the speed that it happened to get (where
its memory lies, which cores its threads found), and the next one has another. Many runs in two processes would
measure very exactly a difference that says nothing of the engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.gate.figures import ProcessRuns, figures_of
from llmc.runtimes.bench.gate.judge import ERROR, Judge, Measured
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.gate.record import GateRecord, StartRecord
from llmc.runtimes.bench.latency import Course, StudyPlan, run_benchmark
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchCase, BenchReport, Subject
from llmc.runtimes.bench.rounds import Progress, Rounds, count_start_steps
from llmc.runtimes.machine.bandwidth import Bandwidth

Figures = Mapping[str, Sequence[Mapping[str, float]]]
"""Case -> [starts] of figures by metric."""


@dataclass(frozen=True)
class RecordedBaseline:
    """Figures of an earlier run: its file, and what its engine reached."""

    name: str
    figures: Figures


@dataclass
class Gate:
    """One measurement of a candidate, and of a baseline in turn with it."""

    options: GateOptions
    judge: Judge
    candidate: str
    baseline: str = ""
    recorded: RecordedBaseline | None = None
    clock: Callable[[], float] = time.monotonic
    measured: list[StartRecord] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0

    def measure(self, rounds: Rounds) -> None:
        """Start the subjects until the conditions are decided, or a limit is reached."""
        begin = self.clock()
        while self.starts < self.options.most_starts:
            self._start(rounds)
            self.seconds = self.clock() - begin
            self.judge.require(self.figures)
            late = bool(self.options.fail_if) and self.seconds >= self.options.time_limit
            decided = self.judge.look(self.figures) if late or self.starts in self.judge.looks else "undecided"
            if late or (self.options.fail_if and decided != "undecided"):
                return

    def _start(self, rounds: Rounds) -> None:
        runs, order = rounds.options.runs, list(rounds.subjects)
        # Whoever goes first finds other caches and clocks than whoever goes second; the order is exchanged each time,
        # so that equal engines differ as often one way as the other.
        peaks = rounds.run_afresh(order[::-1] if self.starts % 2 else order, self.starts * runs)
        for subject in order:
            for case in rounds.cases:
                samples = rounds.samples[subject.label, case][-runs:]
                load_s = rounds.opened[subject.label].load_s[-1]
                figures = figures_of(ProcessRuns(case, samples, load_s, peaks[subject.label]))
                self.measured.append(StartRecord(subject.label, case.name, self.starts, figures))
        self.starts += 1

    @property
    def figures(self) -> Measured:
        """All that is known so far."""
        mine = figures_by_case(self.measured, self.candidate)
        if self.recorded is not None:
            return Measured(mine, self.recorded.figures, paired=False)
        return Measured(mine, figures_by_case(self.measured, self.baseline), paired=True)

    def record(self) -> GateRecord:
        """What the document keeps."""
        return GateRecord(
            outcome=self.judge.outcome,
            conditions=self.judge.records(),
            candidate=self.candidate,
            baseline=self.recorded.name if self.recorded is not None else self.baseline,
            paired=self.recorded is None and bool(self.baseline),
            starts=self.starts,
            most_starts=self.options.most_starts,
            most_seconds=float(self.options.time_limit),
            seconds=self.seconds,
            error=ERROR,
            measured=tuple(self.measured),
        )


def figures_by_case(measured: Sequence[StartRecord], label: str) -> Figures:
    """One subject's figures, in the order of its starts."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for record in measured:
        if record.label == label:
            found.setdefault(record.case, []).append(record.figures)
    return found


def run_gate(
    candidate: Subject,
    baseline: Subject | RecordedBaseline | None,
    cases: Sequence[BenchCase],
    options: BenchOptions,
    gate: GateOptions,
    *,
    bandwidth: Bandwidth | None = None,
    progress: Progress | None = None,
    studies: Sequence[StudyPlan] = (),
) -> BenchReport:
    """Measure an engine until every condition is decided or a limit is reached.

    Args:
        candidate: What is judged.
        baseline: An engine that takes turns with it, figures of an earlier run, or None.
        cases: Each is judged.
        options: ``runs`` are those of one process; memory is that of the processes that are measured anyway.
        gate: Conditions and limits.
        bandwidth, progress, studies: As in :func:`~llmc.runtimes.bench.latency.run_benchmark`.

    Raises:
        UsageError: a condition that is none, or names something that is not there.
        LlmcError: what a worker raised.
    """
    subjects = [candidate, *([baseline] if isinstance(baseline, Subject) else [])]
    judge = Judge(gate.fail_if, [case.name for case in cases], gate.most_starts)
    if judge.needs_baseline and baseline is None:
        raise UsageError(
            "--fail-if speaks of a baseline: name an engine or an earlier report with --baseline DIR|FILE"
        )
    measuring = Gate(
        gate,
        judge,
        candidate.label,
        baseline.label if isinstance(baseline, Subject) else "",
        baseline if isinstance(baseline, RecordedBaseline) else None,
    )
    course = Course(gate.most_starts * count_start_steps(subjects, cases, options), measuring.measure)
    report = run_benchmark(
        subjects, cases, options, bandwidth=bandwidth, progress=progress, studies=studies, course=course
    )
    return replace(report, gate=measuring.record())
