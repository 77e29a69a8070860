"""Runs loads, one after the other, and makes the report.

In: a target, options. Out: a :class:`~llmc.runtimes.bench.results.BenchReport` whose ``load`` has every request. What
was measured before Ctrl-C is in it, and it says that it is not all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.base.versions import llmc_version
from llmc.runtimes.bench.ceilings import Ceilings, measure_ceilings
from llmc.runtimes.bench.load.analysis import analyze_point, load_requests
from llmc.runtimes.bench.load.arrivals import arrival_times
from llmc.runtimes.bench.load.course import ClosedStarts, Course, OpenStarts, Starts, Window
from llmc.runtimes.bench.load.lengths import Lengths
from llmc.runtimes.bench.load.options import LoadOptions, PointPlan
from llmc.runtimes.bench.load.records import LOAD_CONVENTIONS, LoadPoint, LoadRecord, LoadRequest, TraceFacts
from llmc.runtimes.bench.load.target import LoadTarget, Watch
from llmc.runtimes.bench.load.trace import Trace, read_trace
from llmc.runtimes.bench.load.warnings import load_warnings
from llmc.runtimes.bench.load.workload import Piece, Work, Workload, prompt_work, random_work, trace_work
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.prompts import Prompts, read_prompts
from llmc.runtimes.bench.results import BenchReport, OtherLoad
from llmc.runtimes.machine.fingerprint import machine_fingerprint
from llmc.runtimes.machine.load import other_load

AHEAD = 64
"""Requests that are kept ready, beside one for each user."""


@dataclass(eq=False)
class LoadRun:
    """One or several targets under the same loads.

    Attributes:
        options: What is asked.
        progress: Told of each point.
        points, requests: What was measured so far.
        is_complete: Nothing was interrupted.
    """

    options: LoadOptions
    progress: Progress = NO_PROGRESS
    points: list[LoadPoint] = field(default_factory=list)
    requests: list[LoadRequest] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    is_complete: bool = True

    def __post_init__(self) -> None:
        options = self.options
        self.trace: Trace | None = read_trace(Path(options.trace), options.speed) if options.trace else None
        self.prompts: Prompts | None = read_prompts(Path(options.prompts)) if options.prompts else None

    def open(self, target: LoadTarget) -> None:
        """Make a target ready.

        Raises:
            LlmcError: as the target's.
        """
        self.progress.start(f"{target.label}: a first answer")
        self.warnings += target.open(self.options, self.workload, self._longest())

    @property
    def workload(self) -> Workload:
        """What is asked, request by request."""
        if self.trace is not None:
            return trace_work(self.options, self.trace)
        return random_work(self.options) if self.prompts is None else prompt_work(self.options, self.prompts.items)

    def _longest(self) -> list[Work]:
        """Requests of which one is as long as any will be."""
        if self.trace is not None:
            work = self.workload
            return [work(0, number) for number in range(len(self.trace.entries))]
        most = Lengths.parse("--output-len", self.options.output_len).most
        if self.prompts is not None:
            return [Work(item, most) for item in self.prompts.items]
        return [Work((Piece((0,), Lengths.parse("--input-len", self.options.input_len).most),), most)]

    def measure(self, target: LoadTarget, repeat: int = 0) -> bool:
        """All points of a target that is open, once; False: it was interrupted.

        Raises:
            EngineError: the engine failed.
        """
        for number, plan in enumerate(self.options.points):
            if not self._measure_point(target, plan, number + repeat * len(self.options.points), repeat):
                return False
        return True

    def _measure_point(self, target: LoadTarget, plan: PointPlan, number: int, repeat: int) -> bool:
        """One load; ``number`` tells its prompts and arrivals from those of every other one."""
        window = Window(self.options.warm_up_s, self.options.duration_s, self.options.requests)
        work = self.workload
        course = Course(
            self._starts(plan, number),
            window,
            lambda request: work(number, request),
            target.prepare,
            ahead=AHEAD + (plan.users or 0),
            most=None if self.trace is None else len(self.trace.entries),
        )
        seconds = self._seconds()
        self.progress.start(f"{target.label}, {plan.name}", None if seconds is None else max(1, round(seconds)), "s")
        traffic = target.run(course, self._watch(seconds))
        requests = load_requests(target.label, plan, repeat, traffic)
        if any(it.phase == "measured" for it in requests):
            limits = self.options.limits
            self.points.append(analyze_point(target.label, plan, repeat, window, traffic, requests, limits))
            self.requests += requests
        self.is_complete = self.is_complete and not traffic.is_interrupted
        return not traffic.is_interrupted

    def _starts(self, plan: PointPlan, number: int) -> Starts:
        options = self.options
        if self.trace is not None:
            return OpenStarts(entry.arrival_s for entry in self.trace.entries)
        if plan.rate is not None:
            seed = (options.seed, number)
            return OpenStarts(arrival_times(options.arrivals, plan.rate, options.burstiness, seed))
        return ClosedStarts(plan.users or 1, options.warm_up_s)

    def _seconds(self) -> float | None:
        """How long a point takes, its end aside."""
        if self.trace is None:
            return self.options.warm_up_s + self.options.duration_s
        return min(self.trace.entries[-1].arrival_s, self.options.warm_up_s + self.options.duration_s)

    def _watch(self, seconds: float | None) -> Watch:
        """Tells the progress once in a while; a moment costs nothing else."""
        told = 0.0

        def watch(now: float) -> None:
            nonlocal told
            if now - told >= 0.25:
                told = now
                self.progress.advance(int(now if seconds is None else min(now, seconds)))

        return watch

    def record(self, target: LoadTarget) -> LoadRecord:
        """What the document keeps.

        Raises:
            UsageError: nothing was measured.
        """
        if not self.points:
            raise UsageError("no request came into the window; use a longer --duration or a shorter --warm-up")
        trace = self.trace
        return LoadRecord(
            options=self.options,
            limits=self.options.limits,
            points=tuple(self.points),
            requests=tuple(self.requests),
            rows=target.rows,
            joins=target.joins,
            trace=None if trace is None else TraceFacts(trace.file, trace.sha256, len(trace.entries)),
            complete=self.is_complete,
        )


def load_report(
    run: LoadRun, targets: Sequence[LoadTarget], created: datetime, loads: OtherLoad, ceilings: Ceilings, threads: int
) -> BenchReport:
    """The document of a run that is over, or was interrupted."""
    options = run.options
    notes = () if run.is_complete else ("interrupted: what was measured until then is here, the rest is missing",)
    busy = tuple(
        f"other processes used {share:.0%} of the cores {when} the run: its figures are theirs, too"
        for when, share in (("before", loads.before), ("after", loads.after))
        if share > BenchOptions().load_warning
    )
    return BenchReport(
        machine=machine_fingerprint(),
        bandwidth=ceilings.read,
        options=BenchOptions(runs=1, threads=threads or None, seed=options.seed, temperature=options.temperature),
        subjects=tuple(target.subject() for target in targets),
        results=(),
        comparisons=(),
        other_load=loads,
        warnings=tuple(dict.fromkeys((*notes, *run.warnings, *busy, *load_warnings(run.points, options)))),
        llmc=llmc_version(),
        created=created.isoformat(timespec="seconds"),
        prompts=None if run.prompts is None else run.prompts.facts,
        ceilings=ceilings,
        load=run.record(targets[0]),
        conventions=LOAD_CONVENTIONS,
    )


def run_load(
    targets: Sequence[LoadTarget], options: LoadOptions, threads: int | None = None, progress: Progress = NO_PROGRESS
) -> BenchReport:
    """Measure every load on every target, one target after the other.

    Args:
        targets: At least one; opened and closed here.
        options: What is asked.
        threads: Of an engine in this process.
        progress: Told of each point.

    Raises:
        UsageError: what is asked does not fit, or nothing came into a window.
        EngineError: a target does not answer, or an engine failed.
    """
    run, created, machine = LoadRun(options, progress), datetime.now(UTC), machine_fingerprint()
    for target in targets:
        target.check()
    progress.start("Ceilings of the machine")
    before, window_s = other_load(BenchOptions().load_window_s), BenchOptions().load_window_s
    ceilings = measure_ceilings(threads or machine.physical_cores)
    for target in targets:
        try:
            run.open(target)
            if not run.measure(target):
                break
        finally:
            target.close()
    loads = OtherLoad(before, other_load(window_s) if run.is_complete else before)
    return load_report(run, targets, created, loads, ceilings, threads or 0)
