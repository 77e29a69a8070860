"""From raw times to the figures of a benchmark.

In: samples (time to the first token, gaps, other load) per subject and case. Out: results, comparisons, warnings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmc.runtimes.bench.artifact_facts import ArtifactFacts
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.ratio_interval import ratio_interval
from llmc.runtimes.bench.results import (
    BenchCase,
    BenchResult,
    Comparison,
    GenerationResult,
    RequestRecord,
    SampleRecord,
    Subject,
    SubjectRecord,
)
from llmc.runtimes.generation.timings import Timings
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.gpu import EnergyCurve, GpuLoad, is_on_cuda
from llmc.runtimes.machine.summary import Percentiles, Summary, paired_ratios

IDLE_WARNING = 0.05


@dataclass(frozen=True)
class Sample:
    """One run: a worker's :class:`~.workers.protocol.RunTimes`, and the share of the cores that others used."""

    first_token_s: float
    step_s: tuple[float, ...]
    other_load: float
    decode_window: tuple[float, float] | None = None
    energy_j: float | None = None

    @property
    def decode_s(self) -> float:
        """Seconds of all decode steps by the wall clock, for the average of the power."""
        return sum(self.step_s) if self.decode_window is None else self.decode_window[1] - self.decode_window[0]


@dataclass(frozen=True)
class Peak:
    """Most memory of one subject in one case; ``device_bytes`` is None on a CPU or when not known."""

    rss_bytes: int
    device_bytes: int | None = None


Samples = dict[tuple[str, BenchCase], list[Sample]]
Generations = dict[tuple[str, BenchCase], list[list[Timings]]]
"""Per subject and case, each round's requests."""


@dataclass
class Opened:
    """A subject while it is measured."""

    subject: Subject
    info: Mapping[str, Any]
    base_rss_bytes: int
    load_s: list[float] = field(default_factory=list)

    def record(self, artifact: ArtifactFacts | None = None) -> SubjectRecord:
        """What the report keeps, with what is known of the subject's files."""
        load, path = Summary.of(self.load_s), str(self.subject.path)
        return SubjectRecord(self.subject.label, path, self.info, load, self.base_rss_bytes, artifact)


def analyze(
    samples: Samples,
    subjects: Sequence[SubjectRecord],
    cases: Sequence[BenchCase],
    peaks: Mapping[tuple[str, BenchCase], Peak],
    bandwidth: Bandwidth,
    copies: CopyBandwidth | None = None,
) -> tuple[BenchResult, ...]:
    """Figures of each case for each subject that ran it, in that order; ``copies``: the ceiling of those on a GPU."""
    return tuple(
        _result(
            subject,
            case,
            samples[subject.label, case],
            peaks.get((subject.label, case)),
            copies if is_on_cuda(subject.info) else bandwidth,
        )
        for case in cases
        for subject in subjects
        if (subject.label, case) in samples
    )


def with_energy(samples: Samples, curve: EnergyCurve) -> Samples:
    """The samples with the GPU's energy in their windows: as measured from here, else as the worker said it."""
    return {key: [_with_energy(sample, curve) for sample in runs] for key, runs in samples.items()}


def _with_energy(sample: Sample, curve: EnergyCurve) -> Sample:
    measured = None if sample.decode_window is None else curve.between(*sample.decode_window)
    return sample if measured is None else replace(sample, energy_j=measured)


def sample_records(samples: Samples) -> tuple[SampleRecord, ...]:
    """Every run as the report keeps it, a subject's runs of a case together."""
    return tuple(
        SampleRecord(label, case, turn, it.first_token_s, it.step_s, it.other_load, it.decode_window, it.energy_j)
        for (label, case), runs in samples.items()
        for turn, it in enumerate(runs)
    )


def request_records(generations: Generations) -> tuple[RequestRecord, ...]:
    """Every request as the report keeps it."""
    return tuple(
        RequestRecord(label, case, turn, tuple(request.ticks))
        for (label, case), rounds in generations.items()
        for turn, each in enumerate(rounds)
        for request in each
    )


def prefill_rate(case: BenchCase, sample: Sample | SampleRecord) -> float:
    """Prompt tokens per second, all rows."""
    return case.batch * case.prompt / sample.first_token_s


def decode_rate(case: BenchCase, sample: Sample | SampleRecord) -> float:
    """Decoded tokens per second, all rows, the first token excluded."""
    return case.batch * len(sample.step_s) / sum(sample.step_s)


def step_ms(sample: Sample) -> float:
    """Milliseconds of a decode step, the mean of a run's."""
    return 1e3 * sum(sample.step_s) / len(sample.step_s)


def step_bytes(info: Mapping[str, Any], case: BenchCase) -> int:
    """Bytes that a decode step reads: the weights once, and each row's KV cache at the case's mean depth.

    Step ``i`` (from 0) of ``gen - 1`` attends to ``prompt + i + 1`` tokens: ``prompt + gen / 2`` on average.
    0 when the subject does not know its weight bytes.
    """
    if not info["weight_bytes"]:
        return 0
    depth = case.prompt + case.gen / 2
    return int(info["weight_bytes"] + case.batch * info["cache_bytes_per_token"] * depth)


def _result(
    subject: SubjectRecord,
    case: BenchCase,
    samples: Sequence[Sample],
    peak: Peak | None,
    ceiling: Bandwidth | CopyBandwidth | None,
) -> BenchResult:
    tpot_ms = Summary.of([step_ms(sample) for sample in samples])
    read = step_bytes(subject.info, case)
    share = read / (tpot_ms.median / 1e3) / ceiling.bytes_per_second.median if read and ceiling else None
    energies = [(sample.energy_j, sample) for sample in samples if sample.energy_j is not None]
    tokens = case.batch * (case.gen - 1)
    return BenchResult(
        label=subject.label,
        case=case,
        ttft_s=Summary.of([sample.first_token_s for sample in samples]),
        prefill_tokens_per_s=Summary.of([prefill_rate(case, sample) for sample in samples]),
        tpot_ms=tpot_ms,
        itl_ms=Percentiles.of([1e3 * gap for sample in samples for gap in sample.step_s]),
        decode_tokens_per_s=Summary.of([decode_rate(case, sample) for sample in samples]),
        peak_rss_bytes=None if peak is None else peak.rss_bytes,
        step_bytes=read,
        bandwidth_share=share,
        other_load=Summary.of([sample.other_load for sample in samples]),
        device_peak_bytes=None if peak is None else peak.device_bytes,
        joules_per_token=Summary.of([joules / tokens for joules, _ in energies]) if energies else None,
        power_w=Summary.of([joules / sample.decode_s for joules, sample in energies]) if energies else None,
    )


def analyze_generations(generations: Generations) -> tuple[GenerationResult, ...]:
    """Figures of the requests of every case and subject, in the order in which they were measured."""
    return tuple(_generation(label, case, rounds) for (label, case), rounds in generations.items())


def _generation(label: str, case: BenchCase, rounds: Sequence[Sequence[Timings]]) -> GenerationResult:
    requests = [request for each in rounds for request in each]
    spans = [max(r.ticks[-1] for r in each) - min(r.ticks[0] for r in each) for each in rounds]
    return GenerationResult(
        label=label,
        case=case,
        ttft_ms=Percentiles.of([1e3 * ttft for r in requests if (ttft := r.ttft_s) is not None]),
        tpot_ms=Percentiles.of([1e3 * tpot for r in requests if (tpot := r.tpot_s) is not None]),
        itl_ms=Percentiles.of([1e3 * gap for r in requests for gap in r.itl_s.tolist()]),
        tokens_per_s=Summary.of(
            [1e9 * case.gen * len(each) / span for each, span in zip(rounds, spans, strict=True)]
        ),
    )


def compare(samples: Samples, labels: Sequence[str], cases: Sequence[BenchCase]) -> tuple[Comparison, ...]:
    """The first subject over each other one, prefill and decode, round by round, where both ran the case."""
    rates = {"prefill": prefill_rate, "decode": decode_rate}
    found = []
    for case, other, (metric, rate) in itertools.product(cases, labels[1:], rates.items()):
        if not {(labels[0], case), (other, case)} <= samples.keys():
            continue
        first, second = ([rate(case, sample) for sample in samples[label, case]] for label in (labels[0], other))
        ratios = paired_ratios(first, second)
        interval = ratio_interval(ratios)
        found.append(Comparison(labels[0], other, case, metric, ratios, Summary.of(ratios), interval))
    return tuple(found)


def warnings_of(
    options: BenchOptions,
    bandwidth: Bandwidth,
    results: Sequence[BenchResult],
    load_before: float,
    load_after: float,
    idle_share: Mapping[str, float],
    *,
    on_cuda: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    """What a reader must know before trusting the figures, one sentence each.

    ``on_cuda`` names the subjects that run on a GPU, whose weights the processor's cache does not hold.
    """
    found = []
    for when, load in (("before", load_before), ("after", load_after)):
        if load >= options.load_warning:
            found.append(
                f"other processes used {load:.0%} of the cores {when} the benchmark: run it on an idle machine"
            )
    disturbed = [result for result in results if result.other_load.maximum >= options.load_warning]
    if disturbed:
        worst = max(disturbed, key=lambda result: result.other_load.maximum)
        found.append(
            f"other processes used up to {worst.other_load.maximum:.0%} of the cores during runs "
            f"(worst: {worst.label}, {worst.case.name})"
        )
    for label, share in idle_share.items():
        if share >= IDLE_WARNING:
            found.append(f"{label} used {share:.0%} of a core while another subject ran: its threads spin when idle")
    if not bandwidth.reaches_memory:
        found.append(
            f"the bandwidth's buffer ({bandwidth.buffer_bytes >> 20} MiB) is not twice the last-level cache "
            f"({bandwidth.cache_bytes >> 20} MiB): the figure may be the cache's"
        )
    hosted = (result for result in results if result.label not in on_cuda)
    if any(0 < result.step_bytes < bandwidth.cache_bytes for result in hosted):
        found.append(
            f"a decode step reads less than the last-level cache that this machine reports "
            f"({bandwidth.cache_bytes >> 20} MiB): its share of the memory's bandwidth may exceed 100%"
        )
    return tuple(found)


def gpu_warnings(
    options: BenchOptions, results: Sequence[BenchResult], loads: tuple[GpuLoad, GpuLoad] | None, *, counts: bool
) -> tuple[str, ...]:
    """What a reader must know of the GPU, from the ``results`` of the subjects on it.

    ``loads`` are those before the first worker started and after the last one ended; None: not known. ``counts``:
    the GPU's energy was read, so that a figure that is missing needs a reason.
    """
    found = []
    for when, load in zip(("before", "after"), loads or (), strict=False):
        if load.processes:
            found.append(
                f"{load.processes} other processes had the GPU open {when} the benchmark: run it on an idle one"
            )
        elif (load.utilization or 0.0) >= options.load_warning:
            found.append(f"the GPU was {load.utilization:.0%} busy {when} the benchmark: another process uses it")
    if counts and any(result.joules_per_token is None for result in results):
        found.append("some decode parts were too short for the GPU's energy counter: use a larger --gen")
    return tuple(found)
