"""Measures engines side by side: latency, throughput, memory, load time.

In: subjects (a path and the worker that opens it), cases, options. Out: a :class:`~.results.BenchReport`.

Order of things::

    other load, ceilings of the machine
    the rounds (rounds.py): subjects alternate, or one at a time where they do not fit into memory together
    where a subject runs on a GPU: its ceilings
    other load again
    studies, one after the other

Subjects alternate so that a slow minute of the machine meets all of them; idle workers block in a read of stdin, and
the CPU time they use while another one runs is measured: a pool that goes on spinning is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.versions import llmc_version
from llmc.runtimes.bench.analysis import (
    analyze,
    analyze_generations,
    compare,
    gpu_warnings,
    request_records,
    sample_records,
    warnings_of,
)
from llmc.runtimes.bench.artifact_facts import artifact_facts
from llmc.runtimes.bench.ceilings import Ceilings, DeviceCeilings, measure_ceilings
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.prompts import TokenText, read_prompts
from llmc.runtimes.bench.results import BenchCase, BenchReport, BenchResult, GpuLoads, OtherLoad, Subject
from llmc.runtimes.bench.rounds import Progress, Rounds, Steps, count_steps, runs_loop
from llmc.runtimes.bench.text_mode import analyze_texts, compare_texts
from llmc.runtimes.bench.workers.remote import LLMC_WORKER
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.copy_bandwidth import copy_bandwidth_of_device
from llmc.runtimes.machine.fingerprint import machine_fingerprint
from llmc.runtimes.machine.gpu import GpuSampler, open_gpu
from llmc.runtimes.machine.load import other_load
from llmc.runtimes.machine.matmul_rate import matmul_rate_of_device
from llmc.runtimes.machine.powercap import PowercapSampler, open_powercap


@dataclass(frozen=True)
class Course:
    """Another course of a benchmark than its rounds: how many steps it announces at most, and what it does."""

    steps: int
    measure: Callable[[Rounds], None]


class StudyPlan(Protocol):
    """Something to look at when the rounds are done."""

    def count_steps(self, subjects: Sequence[Subject], options: BenchOptions) -> int:
        """Steps that :meth:`extended` announces at most."""
        ...

    def extended(self, report: BenchReport, subjects: Sequence[Subject], steps: Steps) -> BenchReport:
        """The report with what was found; it has the rounds' figures, and those of plans before this one.

        Raises:
            LlmcError: what a worker raised.
        """
        ...


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
    studies: Sequence[StudyPlan] = (),
    course: Course | None = None,
) -> BenchReport:
    """Measure every subject on every case.

    Args:
        subjects: At least one; labels differ. The first is the numerator of the comparisons.
        cases: At least one.
        options: Default :class:`~.results.BenchOptions`.
        bandwidth: A measurement made before on this machine with as many threads, the only ceiling then; None: all
            are measured.
        progress: Told of each step.
        studies: What is looked at afterwards, in this order.
        course: What to measure; None: :meth:`~.rounds.Rounds.measure`.

    Raises:
        UsageError: no subject, no case, or a label used twice.
        LlmcError: what a worker raised.
    """
    chosen = options or BenchOptions()
    _check(subjects, cases)
    prompts = None if chosen.prompts is None else read_prompts(Path(chosen.prompts))
    tokens = None if prompts is None else TokenText.of(prompts, TextTokenizer.from_directory(subjects[0].path))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    looks = sum(plan.count_steps(subjects, chosen) for plan in studies)
    course = course or Course(count_steps(subjects, cases, chosen), Rounds.measure)
    steps = Steps(1 + course.steps + looks, progress)
    machine, gpu = machine_fingerprint(), open_gpu()
    steps.begin("ceilings of the machine")
    load_before, gpu_before = other_load(chosen.load_window_s), gpu and gpu.load()
    threads = chosen.threads or machine.physical_cores
    ceilings = measure_ceilings(threads) if bandwidth is None else Ceilings((bandwidth,))
    zones, energy = open_powercap()
    processor = PowercapSampler(zones) if zones else None
    bench = Rounds(subjects, cases, chosen, steps, None if gpu is None else GpuSampler(gpu), processor)
    bench.prompts, bench.tokens = prompts, tokens
    course.measure(bench)
    if bench.on_cuda:
        ceilings = replace(ceilings, device=DeviceCeilings(copy_bandwidth_of_device(), matmul_rate_of_device()))
    load_after, gpu_after = other_load(chosen.load_window_s), gpu and gpu.load()
    gpu_load = GpuLoads(gpu_before, gpu_after) if gpu_before and gpu_after and bench.on_cuda else None
    # Variants of a peer are of the same files.
    facts = {path: artifact_facts(path) for path in {subject.path for subject in subjects}}
    records = tuple(bench.opened[subject.label].record(facts[subject.path]) for subject in subjects)
    reached, copies = ceilings.read, ceilings.device.copies if ceilings.device else None
    results = analyze(bench.samples, records, cases, bench.peaks, reached, copies)
    report = BenchReport(
        machine=machine,
        bandwidth=reached,
        options=chosen,
        subjects=records,
        results=results,
        comparisons=compare(bench.samples, [subject.label for subject in subjects], cases),
        other_load=OtherLoad(load_before, load_after),
        warnings=_warnings(bench, reached, results, (load_before, load_after), gpu_load),
        copy_bandwidth=copies,
        gpu_load=gpu_load,
        generations=analyze_generations(bench.generations),
        cases=tuple(cases),
        samples=sample_records(bench.samples),
        requests=request_records(bench.generations),
        llmc=llmc_version(),
        created=created,
        energy=energy,
        prompts=None if prompts is None else prompts.facts,
        text_results=analyze_texts(bench.texts),
        texts=tuple(bench.texts),
        text_comparisons=compare_texts(bench.texts),
        ceilings=ceilings,
    )
    for plan in studies:
        report = plan.extended(report, subjects, steps)
    return report


def _warnings(
    bench: Rounds,
    bandwidth: Bandwidth,
    results: Sequence[BenchResult],
    loads: tuple[float, float],
    gpu_loads: GpuLoads | None,
) -> tuple[str, ...]:
    on_gpu = [result for result in results if result.label in bench.on_cuda]
    texts = bench.options.mode == "text"
    mute = [subject.label for subject in bench.subjects if texts and not runs_loop(subject)]
    counts = bench.sampler is not None and bool(bench.sampler.energy.times)
    loads_of_gpu = None if gpu_loads is None else (gpu_loads.before, gpu_loads.after)
    return (
        *warnings_of(bench.options, bandwidth, results, *loads, bench.idle_share, on_cuda=bench.on_cuda),
        *gpu_warnings(bench.options, on_gpu, loads_of_gpu, counts=counts),
        *(f"{label} did not run {case.name}: {why}" for (label, case), why in bench.refusals.items()),
        *(f"{label} was not asked for text: its loop is its own, and --mode text runs llmc's" for label in mute),
    )


def _check(subjects: Sequence[Subject], cases: Sequence[BenchCase]) -> None:
    labels = [subject.label for subject in subjects]
    if not labels or not cases:
        raise UsageError("bench: give at least one engine directory and one case")
    if len(set(labels)) != len(labels):
        raise UsageError(f"bench: two subjects have the same name among {', '.join(labels)}: give them labels")
