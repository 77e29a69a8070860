"""Measures engines side by side: latency, throughput, memory, load time.

In: subjects (a path and the worker that opens it), cases, options. Out: a :class:`~.results.BenchReport`.

Order of things::

    other load, read bandwidth
    for each subject, each case: fresh worker: load, run once    -> load time, peak RSS
    open one worker per subject, warm each case up
    for each round, each case, each subject: run                 -> A B A B …
    other load again

Subjects alternate so that a slow minute of the machine meets all of them; idle workers block in a read of stdin, and
the CPU time they use while another one runs is measured: a pool that goes on spinning is reported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.errors import UsageError
from llmc.runtimes.bench.analysis import Opened, Sample, Samples, analyze, compare, warnings_of
from llmc.runtimes.bench.bandwidth import Bandwidth, measure_read_bandwidth
from llmc.runtimes.bench.load import LoadMeter, other_load
from llmc.runtimes.bench.remote import LLMC_WORKER, WorkerProcess
from llmc.runtimes.bench.results import BenchCase, BenchOptions, BenchReport, Subject
from llmc.runtimes.machine import machine_fingerprint

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called before each step with what it is, its number from 1, and how many there are."""


def llmc_subject(directory: Path, label: str | None = None) -> Subject:
    """An llmc engine directory as a subject, named after the directory unless told otherwise."""
    return Subject(label or directory.resolve().name, directory.resolve(), LLMC_WORKER)


def make_cases(prompts: Sequence[int], gen: int, batches: Sequence[int] = (1,)) -> tuple[BenchCase, ...]:
    """Every prompt length with every batch, each once, in the order given.

    Raises:
        UsageError: nothing to measure, or a value that no case can have.
    """
    cases = tuple(dict.fromkeys(BenchCase(prompt, gen, batch) for batch in batches for prompt in prompts))
    if not cases:
        raise UsageError("bench: no case; give at least one prompt length and one batch")
    return cases


def run_benchmark(
    subjects: Sequence[Subject],
    cases: Sequence[BenchCase],
    options: BenchOptions | None = None,
    *,
    bandwidth: Bandwidth | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure every subject on every case.

    Args:
        subjects: At least one; labels differ. The first is the numerator of the comparisons.
        cases: At least one.
        options: Default :class:`~.results.BenchOptions`.
        bandwidth: A measurement made before on this machine with as many threads; None: measure.
        progress: Told of each step.

    Raises:
        UsageError: no subject, no case, or a label used twice.
        LlmcError: what a worker raised.
    """
    chosen = options or BenchOptions()
    _check(subjects, cases)
    steps = _Steps(len(subjects) * len(cases) * (chosen.runs + 1 + chosen.measure_memory) + 1, progress)
    machine = machine_fingerprint()
    steps.begin("read bandwidth")
    load_before = other_load(chosen.load_window_s)
    reached = bandwidth or measure_read_bandwidth(chosen.threads or machine.physical_cores)
    bench = _Bench(subjects, cases, chosen, steps)
    if chosen.measure_memory:
        bench.measure_memory()
    bench.measure_latency()
    load_after = other_load(chosen.load_window_s)
    records = tuple(bench.opened[subject.label].record() for subject in subjects)
    results = analyze(bench.samples, records, cases, bench.peaks, reached)
    return BenchReport(
        machine=machine,
        bandwidth=reached,
        options=chosen,
        subjects=records,
        results=results,
        comparisons=compare(bench.samples, [subject.label for subject in subjects], cases),
        other_load_before=load_before,
        other_load_after=load_after,
        warnings=warnings_of(chosen, reached, results, load_before, load_after, bench.idle_share),
    )


def _check(subjects: Sequence[Subject], cases: Sequence[BenchCase]) -> None:
    labels = [subject.label for subject in subjects]
    if not labels or not cases:
        raise UsageError("bench: give at least one engine directory and one case")
    if len(set(labels)) != len(labels):
        raise UsageError(f"bench: two subjects have the same name among {', '.join(labels)}: give them labels")


@dataclass
class _Steps:
    """Counts steps for the caller's progress display."""

    total: int
    progress: Progress | None
    done: int = 0

    def begin(self, what: str) -> None:
        self.done += 1
        logger.info("bench %d/%d: %s", self.done, self.total, what)
        if self.progress is not None:
            self.progress(what, self.done, self.total)


@dataclass
class _Bench:
    """The measurements as they grow."""

    subjects: Sequence[Subject]
    cases: Sequence[BenchCase]
    options: BenchOptions
    steps: _Steps
    opened: dict[str, Opened] = field(default_factory=dict)
    peaks: dict[tuple[str, BenchCase], int] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    idle_share: dict[str, float] = field(default_factory=dict)

    def measure_memory(self) -> None:
        """Peak RSS of each subject and case in a fresh process; the load times come from the same processes."""
        for subject in self.subjects:
            for case in self.cases:
                self.steps.begin(f"{subject.label}, {case.name}: memory")
                with WorkerProcess(subject.label, subject.command) as worker:
                    self._open(worker, subject)
                    self._run(worker, case, 0)
                    self.peaks[subject.label, case] = worker.request("memory")["peak_rss_bytes"]

    def measure_latency(self) -> None:
        """All rounds, with one living worker per subject."""
        with ExitStack() as stack:
            workers = {}
            for subject in self.subjects:
                worker = stack.enter_context(WorkerProcess(subject.label, subject.command))
                self._open(worker, subject)
                workers[subject.label] = worker
            for case in self.cases:
                for label, worker in workers.items():
                    self.steps.begin(f"{label}, {case.name}: warm-up")
                    self._run(worker, case, 0)
            for turn in range(self.options.runs):
                self._round(workers, turn)

    def _round(self, workers: dict[str, WorkerProcess], turn: int) -> None:
        for case in self.cases:
            for label, worker in workers.items():
                self.steps.begin(f"{label}, {case.name}: run {turn + 1} of {self.options.runs}")
                idle = {name: other.cpu_seconds() for name, other in workers.items() if name != label}
                begin, meter = time.perf_counter(), LoadMeter()
                meter.start()
                answer = self._run(worker, case, turn)
                load, seconds = meter.stop(), time.perf_counter() - begin
                sample = Sample(answer["first_token_s"], tuple(answer["step_s"]), load)
                self.samples.setdefault((label, case), []).append(sample)
                for name, before in idle.items():
                    share = (workers[name].cpu_seconds() - before) / seconds
                    self.idle_share[name] = max(share, self.idle_share.get(name, 0.0))

    def _open(self, worker: WorkerProcess, subject: Subject) -> None:
        answer = worker.request("open", path=str(subject.path), threads=self.options.threads)
        known = self.opened.setdefault(subject.label, Opened(subject, answer["info"], answer["base_rss_bytes"]))
        known.load_s.append(answer["load_s"])

    def _run(self, worker: WorkerProcess, case: BenchCase, turn: int) -> dict[str, Any]:
        return worker.request(
            "run",
            prompt=case.prompt,
            gen=case.gen,
            batch=case.batch,
            seed=self.options.seed + turn,
            warm_steps=self.options.warm_steps,
        )
