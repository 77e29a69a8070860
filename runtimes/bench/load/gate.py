"""Repeats loads until conditions are decided.

In: a target, what it is compared with, conditions. Out: a report whose ``gate`` says what was decided.

A repeat is all loads once, with prompts and arrivals of its own, and is the unit of which intervals are made:
requests of one run wait for each other, so that a thousand of them are not a thousand samples. Engines are opened
anew in each; a server stays. Points are a gate's cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.bench.ceilings import measure_ceilings
from llmc.runtimes.bench.document import read_report
from llmc.runtimes.bench.gate.judge import ERROR, Judge, Measured
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.gate.record import GateRecord, StartRecord
from llmc.runtimes.bench.gate.run import RecordedBaseline, figures_by_case
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.records import LoadPoint
from llmc.runtimes.bench.load.run import LoadRun, load_report
from llmc.runtimes.bench.load.target import LoadTarget
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, OtherLoad
from llmc.runtimes.machine.fingerprint import machine_fingerprint
from llmc.runtimes.machine.load import other_load

RATES = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "goodput_per_s", "good_share", "ok_share")
LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
PERCENTILES = ("p50", "p90", "p95", "p99")
_NOTHING = 1e-9
"""In place of a rate of zero, which has no logarithm: below any limit."""
LOAD_METRICS = (*RATES, *(f"{name}.{percentile}" for name in LATENCIES for percentile in PERCENTILES))
LOAD_ALIASES: Mapping[str, str] = {
    "output_tps": "output_tokens_per_s",
    "goodput": "goodput_per_s",
    **{
        f"{name.removesuffix('_ms')}_{percentile}": f"{name}.{percentile}"
        for name in LATENCIES
        for percentile in PERCENTILES
    },
}
"""``ttft_p99`` -> ``ttft_ms.p99``."""


def load_figures(point: LoadPoint) -> dict[str, float]:
    """What a condition may name, of a point; what it has not is absent."""
    rates = {name: getattr(point, name) for name in RATES}
    figures = {name: max(value, _NOTHING) for name, value in rates.items() if value is not None}
    for name in LATENCIES:
        if (figure := getattr(point, name)) is not None:
            figures |= {f"{name}.{each}": max(getattr(figure, each), _NOTHING) for each in PERCENTILES}
    return figures


@dataclass
class LoadGate:
    """The repeats of one gate."""

    options: GateOptions
    judge: Judge
    run: LoadRun
    candidate: LoadTarget
    baseline: LoadTarget | RecordedBaseline | None
    clock: Callable[[], float] = time.monotonic
    measured: list[StartRecord] = field(default_factory=list)
    repeats: int = 0
    seconds: float = 0.0

    @property
    def targets(self) -> list[LoadTarget]:
        """What is measured."""
        others = [] if self.baseline is None or isinstance(self.baseline, RecordedBaseline) else [self.baseline]
        return [self.candidate, *others]

    def measure(self) -> None:
        """Repeat until the conditions are decided, a limit is reached, or Ctrl-C.

        Raises:
            EngineError: the generator is the bottleneck, so that nothing can be judged.
        """
        begin = self.clock()
        while self.repeats < self.options.most_starts:
            if not self._repeat():
                return
            self.seconds = self.clock() - begin
            self.judge.require(self.figures)
            late = bool(self.options.fail_if) and self.seconds >= self.options.time_limit
            decided = self.judge.look(self.figures) if late or self.repeats in self.judge.looks else "undecided"
            if late or (self.options.fail_if and decided != "undecided"):
                return

    def _repeat(self) -> bool:
        """All loads once on each target, who goes first in turns; False: interrupted."""
        order = self.targets[::-1] if self.repeats % 2 else self.targets
        before = len(self.run.points)
        for target in order:
            try:
                self.run.open(target)
                if not self.run.measure(target, self.repeats):
                    return False
            finally:
                target.close()
        for point in self.run.points[before:]:
            if self.options.fail_if and point.generator.is_limit:
                raise EngineError(
                    f"{point.label}, {point.name}: the generator was the bottleneck, so there is nothing to judge; "
                    "give it a core of its own, or ask for less load"
                )
            self.measured.append(StartRecord(point.label, point.point, self.repeats, load_figures(point)))
        self.repeats += 1
        return True

    @property
    def figures(self) -> Measured:
        """All that is known so far."""
        mine = figures_by_case(self.measured, self.candidate.label)
        if isinstance(self.baseline, RecordedBaseline):
            return Measured(mine, self.baseline.figures, paired=False)
        label = "" if self.baseline is None else self.baseline.label
        return Measured(mine, figures_by_case(self.measured, label), paired=True)

    def record(self) -> GateRecord:
        """What the document keeps."""
        recorded = isinstance(self.baseline, RecordedBaseline)
        name = "" if self.baseline is None else getattr(self.baseline, "name" if recorded else "label")
        return GateRecord(
            outcome=self.judge.outcome,
            conditions=self.judge.records(),
            candidate=self.candidate.label,
            baseline=str(name),
            paired=bool(name) and not recorded,
            starts=self.repeats,
            most_starts=self.options.most_starts,
            most_seconds=float(self.options.time_limit),
            seconds=self.seconds,
            error=ERROR,
            measured=tuple(self.measured),
            unit="repeats",
        )


def run_load_gate(
    targets: Sequence[LoadTarget],
    baseline: LoadTarget | RecordedBaseline | None,
    options: LoadOptions,
    gate: GateOptions,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> BenchReport:
    """Measure one target until every condition is decided or a limit is reached.

    Raises:
        UsageError: not one target, or a condition that is none or names something that is not there.
        EngineError: a target does not answer, or the generator is the bottleneck.
    """
    if len(targets) != 1:
        raise UsageError(f"--fail-if and --repeats judge one engine, not {len(targets)}; the other is --baseline DIR")
    cases = [plan.name for plan in options.points]
    names = (*LOAD_ALIASES, *LOAD_METRICS)
    judge = Judge(gate.fail_if, cases, gate.most_starts, names=names, aliases=LOAD_ALIASES)
    if judge.needs_baseline and baseline is None:
        raise UsageError("--fail-if speaks of a baseline: name one with --baseline DIR|URL|FILE")
    run, created = LoadRun(options, progress), datetime.now(UTC)
    measuring = LoadGate(gate, judge, run, targets[0], baseline)
    window_s = BenchOptions().load_window_s
    for target in measuring.targets:
        target.check()
    progress.start("Ceilings of the machine")
    before = other_load(window_s)
    ceilings = measure_ceilings(threads or machine_fingerprint().physical_cores)
    measuring.measure()
    loads = OtherLoad(before, other_load(window_s) if run.is_complete else before)
    report = load_report(run, measuring.targets, created, loads, ceilings, threads or 0)
    return replace(report, gate=measuring.record())


def read_load_baseline(path: Path, options: LoadOptions, *, anyway: bool = False) -> RecordedBaseline:
    """Figures of an earlier run.

    Args:
        path: What ``llmc load … --repeats N --json FILE`` wrote.
        options: What is about to be asked.
        anyway: Take it although the machine or the load was another one.

    Raises:
        UsageError: it is no such report, or is not comparable.
    """
    report = read_report(path)
    if report.load is None or report.gate is None:
        raise UsageError(f"{path} has no repeats of a load; write it with llmc load … --repeats 20 --json {path}")
    figures, here = figures_by_case(report.gate.measured, report.gate.candidate), machine_fingerprint()
    if lost := [plan.name for plan in options.points if plan.name not in figures]:
        raise UsageError(f"{path} has no figures of {', '.join(lost)}; it has {', '.join(figures)}")
    others = [
        text
        for text, differs in (
            (f"its processor is {report.machine.cpu_model}", report.machine.cpu_model != here.cpu_model),
            ("its load was another one", replace(report.load.options, seed=options.seed) != options),
        )
        if differs
    ]
    if others and not anyway:
        raise UsageError(f"{path} is not comparable: {'; '.join(others)}; measure it again, or add --baseline-anyway")
    return RecordedBaseline(path.name, figures)
