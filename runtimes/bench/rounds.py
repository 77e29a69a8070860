"""The measurements of a benchmark: workers started, cases run, raw times kept.

In: subjects, cases, options. Out: :class:`Rounds`, whose fields are the samples, the peaks of memory and what the
subjects said of themselves. Three orders of things::

    interleaved    for each subject, each case: fresh worker: load, run once   -> load time, memory
                   open one worker per subject, warm each case up
                   for each round, each case, each subject: run                -> A B A B …
    one at a time  for each visit: fresh worker: load, warm each case up (and measure memory), run its rounds, close
                   visits: A B C, half of the rounds each, then C B A          -> A A B B C C C C B B A A
    afresh         for each start: what "interleaved" or "one at a time" does, in processes of its own

A visit that follows one of the same subject is joined with it (C above). A case that a peer refuses when it is first
asked is left out for it, with what it said; one that an engine of llmc's refuses ends the benchmark, and so does a
peer that refuses all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.analysis import Generations, Opened, Peak, Sample, Samples, with_energy
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.prompts import Prompts, TokenText
from llmc.runtimes.bench.results import BenchCase, Subject
from llmc.runtimes.bench.text_mode import TextRecord, text_records
from llmc.runtimes.bench.workers.remote import LLMC_WORKER, WorkerProcess
from llmc.runtimes.generation.timings import Timings
from llmc.runtimes.machine.gpu import GpuSampler, is_on_cuda
from llmc.runtimes.machine.load import LoadMeter
from llmc.runtimes.machine.powercap import PowercapSampler

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called before each step with what it is, its number from 1, and how many there are."""


@dataclass
class Steps:
    """Counts steps for the caller's progress display."""

    total: int
    progress: Progress | None
    done: int = 0

    def begin(self, what: str) -> None:
        """Say what comes next."""
        self.done += 1
        log.info("bench %d/%d: %s", self.done, self.total, what)
        if self.progress is not None:
            self.progress(what, self.done, self.total)


@dataclass(frozen=True)
class Visit:
    """One opening of a subject in a benchmark of one at a time, and the rounds that are run in it."""

    subject: Subject
    turns: tuple[int, ...]


def plan_visits(subjects: Sequence[Subject], runs: int) -> list[Visit]:
    """First half of the rounds in the order of the subjects, second half in reverse."""
    half = (runs + 1) // 2
    order = [Visit(subject, tuple(range(half))) for subject in subjects]
    order += [Visit(subject, tuple(range(half, runs))) for subject in reversed(subjects) if half < runs]
    visits: list[Visit] = []
    for visit in order:
        if visits and visits[-1].subject == visit.subject:
            visit = Visit(visit.subject, visits.pop().turns + visit.turns)
        visits.append(visit)
    return visits


def count_steps(subjects: Sequence[Subject], cases: Sequence[BenchCase], options: BenchOptions) -> int:
    """Steps that :meth:`Rounds.measure` announces."""
    able = sum(runs_loop(subject) for subject in subjects)
    runs = (len(subjects) + (able if options.generate else 0)) * options.runs
    texts = able * options.runs if options.mode == "text" else 0
    if options.one_at_a_time:
        return len(cases) * (runs + len(plan_visits(subjects, options.runs))) + texts
    return len(cases) * (runs + len(subjects) * (1 + options.measure_memory)) + texts


def count_start_steps(subjects: Sequence[Subject], cases: Sequence[BenchCase], options: BenchOptions) -> int:
    """Steps that :meth:`Rounds.run_afresh` announces."""
    generating = sum(runs_loop(subject) for subject in subjects) if options.generate else 0
    return len(cases) * ((len(subjects) + generating) * options.runs + len(subjects))


def runs_loop(subject: Subject) -> bool:
    """Whether a subject has the loop of llmc's users: peers have their own."""
    return subject.command == LLMC_WORKER


@dataclass
class Rounds:
    """The measurements as they grow; ``sampler`` watches the GPU and ``processor`` the CPU's energy, if at all.

    ``refusals``: what a peer said of a case that it does not run.
    """

    subjects: Sequence[Subject]
    cases: Sequence[BenchCase]
    options: BenchOptions
    steps: Steps
    sampler: GpuSampler | None = None
    processor: PowercapSampler | None = None
    opened: dict[str, Opened] = field(default_factory=dict)
    peaks: dict[tuple[str, BenchCase], Peak] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    generations: Generations = field(default_factory=dict)
    idle_share: dict[str, float] = field(default_factory=dict)
    prompts: Prompts | None = None
    tokens: TokenText | None = None
    texts: list[TextRecord] = field(default_factory=list)
    refusals: dict[tuple[str, BenchCase], str] = field(default_factory=dict)

    @property
    def on_cuda(self) -> frozenset[str]:
        """Labels of the subjects that run on a GPU."""
        return frozenset(label for label, opened in self.opened.items() if is_on_cuda(opened.info))

    def measure(self) -> None:
        """Run everything."""
        with nullcontext() if self.processor is None else self.processor.watching():
            if self.options.one_at_a_time:
                for visit in plan_visits(self.subjects, self.options.runs):
                    self._visit(visit)
            else:
                if self.options.measure_memory:
                    self._measure_memory()
                self._measure_latency()
        self._read_energy()

    def run_afresh(self, subjects: Sequence[Subject], first: int) -> dict[str, int | None]:
        """Open these subjects anew in this order, warm each case up, run all rounds, close them.

        Args:
            subjects: Some or all of the benchmark's, in the order of their turns.
            first: Number of the first of these rounds, for its random tokens.

        Returns:
            Most resident bytes of each subject's process, by label; None where memory is not measured.
        """
        groups = [(subject,) for subject in subjects] if self.options.one_at_a_time else [tuple(subjects)]
        peaks: dict[str, int | None] = {}
        with nullcontext() if self.processor is None else self.processor.watching():
            for group in groups:
                peaks |= self._run_group(group, first)
        self._read_energy()
        return peaks

    def _run_group(self, subjects: Sequence[Subject], first: int) -> dict[str, int | None]:
        """Some subjects of a start, which are open together."""
        peaks: dict[str, int | None] = {}
        with self._together(subjects) as workers:
            for turn in range(first, first + self.options.runs):
                self._round(workers, turn)
            for label, worker in workers.items():
                peak = worker.request("memory")["peak_rss_bytes"] if self.options.measure_memory else None
                peaks[label] = peak
                if peak is not None:
                    self.peaks.update({(label, case): Peak(peak) for case in self.cases})
        return peaks

    def _read_energy(self) -> None:
        """Energy of the decode steps: the GPU's of the subjects there, the processor's of the others."""
        on_cuda = self.on_cuda
        for sampler, there in ((self.sampler, True), (self.processor, False)):
            if sampler is not None:
                theirs = {key: runs for key, runs in self.samples.items() if (key[0] in on_cuda) == there}
                self.samples |= with_energy(theirs, sampler.energy)

    def _measure_memory(self) -> None:
        """Peaks of memory of each subject and case in a fresh process; the load times come from these, too."""
        for subject in self.subjects:
            for case in self.cases:
                self.steps.begin(f"{subject.label}, {case.name}: memory")
                with self._alone(subject) as worker:
                    if self._runs(worker, case):
                        self._note_memory(worker, case)

    def _measure_latency(self) -> None:
        """All rounds, with one living worker per subject."""
        with self._together(self.subjects) as workers:
            for turn in range(self.options.runs):
                self._round(workers, turn)

    @contextmanager
    def _together(self, subjects: Sequence[Subject]) -> Iterator[dict[str, WorkerProcess]]:
        """A living worker per subject, each case warmed up, the GPU watched."""
        with ExitStack() as stack:
            workers = {}
            for subject in subjects:
                worker = stack.enter_context(WorkerProcess(subject.label, subject.command))
                self._open(worker, subject)
                workers[subject.label] = worker
            for label, worker in workers.items():
                for case in self.cases:
                    self._warm_up(label, worker, case)
            if self.sampler is not None and self.on_cuda:
                stack.enter_context(self.sampler.watching())
            yield workers

    def _visit(self, visit: Visit) -> None:
        """One subject alone: opened, its rounds, closed."""
        label = visit.subject.label
        with self._alone(visit.subject) as worker:
            for case in self.cases:
                self._warm_up(label, worker, case)
                known = (label, case) in self.peaks or (label, case) in self.refusals
                if self.options.measure_memory and not known:
                    self._note_memory(worker, case)
            if self.sampler is not None:
                self.sampler.unfollow()
            for turn in visit.turns:
                self._round({label: worker}, turn)

    @contextmanager
    def _alone(self, subject: Subject) -> Iterator[WorkerProcess]:
        """A fresh worker with the subject open, and the GPU watched since before it started."""
        watching = nullcontext() if self.sampler is None else self.sampler.watching()
        with watching, WorkerProcess(subject.label, subject.command) as worker:
            if self.sampler is not None:
                self.sampler.follow(worker.pid)
            self._open(worker, subject)
            if self.sampler is not None and subject.label not in self.on_cuda:
                self.sampler.rest()
            yield worker

    def _note_memory(self, worker: WorkerProcess, case: BenchCase) -> None:
        answer = worker.request("memory")
        device = None
        if worker.label in self.on_cuda:
            seen = None if self.sampler is None else self.sampler.peak_bytes()
            device = seen or answer.get("device_bytes")
        self.peaks[worker.label, case] = Peak(answer["peak_rss_bytes"], device)

    def _warm_up(self, label: str, worker: WorkerProcess, case: BenchCase) -> None:
        self.steps.begin(f"{label}, {case.name}: warm-up")
        self._runs(worker, case)

    def _runs(self, worker: WorkerProcess, case: BenchCase) -> bool:
        """Run a case untimed; whether it was run. A peer's refusal is noted, and the case not asked for again.

        Raises:
            LlmcError: an engine of llmc's refused it, or a peer refused every case.
        """
        key = worker.label, case
        if key in self.refusals:
            return False
        try:
            self._run(worker, case, 0)
        except EngineError as error:
            others = {(worker.label, each) for each in self.cases if each != case}
            if runs_loop(self.opened[worker.label].subject) or others <= self.refusals.keys():
                raise
            log.info("%s", error)
            self.refusals[key] = str(error).splitlines()[0].removeprefix(f"{worker.label}: ")
        return key not in self.refusals

    def _round(self, workers: Mapping[str, WorkerProcess], turn: int) -> None:
        for case in self.cases:
            for label, worker in workers.items():
                if (label, case) in self.refusals:
                    self.steps.begin(f"{label}, {case.name}: left out")
                    continue
                self.steps.begin(f"{label}, {case.name}: run {turn % self.options.runs + 1} of {self.options.runs}")
                idle = {name: other.cpu_seconds() for name, other in workers.items() if name != label}
                begin, meter = time.perf_counter(), LoadMeter()
                meter.start()
                answer = self._run(worker, case, turn)
                load, seconds = meter.stop(), time.perf_counter() - begin
                window, times = answer.get("decode_window"), (answer["first_token_s"], tuple(answer["step_s"]))
                sample = Sample(*times, load, window and (window[0], window[1]), answer.get("energy_j"))
                self.samples.setdefault((label, case), []).append(sample)
                for name, before in idle.items():
                    share = (workers[name].cpu_seconds() - before) / seconds
                    self.idle_share[name] = max(share, self.idle_share.get(name, 0.0))
                self._generate(worker, case, turn)
        for worker in workers.values():
            self._text(worker, turn)

    def _open(self, worker: WorkerProcess, subject: Subject) -> None:
        answer = worker.request("open", path=str(subject.path), threads=self.options.threads)
        known = self.opened.setdefault(subject.label, Opened(subject, answer["info"], answer["base_rss_bytes"]))
        known.load_s.append(answer["load_s"])

    def _generate(self, worker: WorkerProcess, case: BenchCase, turn: int) -> None:
        """A round's requests, where they are asked for and the subject can."""
        if not self.options.generate or not runs_loop(self.opened[worker.label].subject):
            return
        count = self.options.generate
        self.steps.begin(f"{worker.label}, {case.name}: {count} requests, round {turn + 1} of {self.options.runs}")
        answer = worker.request(
            "generate", **self._fields(case, turn), requests=count, temperature=self.options.temperature
        )
        timings = [Timings(ticks) for ticks in answer["ticks"]]
        self.generations.setdefault((worker.label, case), []).append(timings)

    def _text(self, worker: WorkerProcess, turn: int) -> None:
        """A round's prompts through the loop that users run, where it is asked for and the subject can."""
        options = self.options
        if options.mode != "text" or self.prompts is None or not runs_loop(self.opened[worker.label].subject):
            return
        items = self.prompts.items
        self.steps.begin(f"{worker.label}, {len(items)} texts: round {turn + 1} of {options.runs}")
        gen, seed = max(case.gen for case in self.cases), options.seed + turn
        answer = worker.request("text", prompts=list(items), gen=gen, seed=seed, temperature=options.temperature)
        self.texts += text_records(worker.label, turn, answer["answers"])

    def _run(self, worker: WorkerProcess, case: BenchCase, turn: int) -> dict[str, Any]:
        return worker.request("run", **self._fields(case, turn))

    def _fields(self, case: BenchCase, turn: int) -> dict[str, Any]:
        """What a worker's RunRequest is made of."""
        fields = {**asdict(case), "seed": self.options.seed + turn, "warm_steps": self.options.warm_steps}
        return fields if self.tokens is None else fields | {"tokens": self.tokens.rows(case, turn)}
