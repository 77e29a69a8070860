"""From raw times to the figures of a benchmark.

In: samples (time to the first token, gaps, other load) per subject and case. Out: results, comparisons, warnings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmc.runtimes.bench.bandwidth import Bandwidth
from llmc.runtimes.bench.results import (
    BenchCase,
    BenchOptions,
    BenchResult,
    Comparison,
    Subject,
    SubjectRecord,
)
from llmc.runtimes.bench.summary import Percentiles, Summary, paired_ratios

IDLE_WARNING = 0.05


@dataclass(frozen=True)
class Sample:
    """One run: seconds to the first token, seconds of each decode step, share of the cores that others used."""

    first_token_s: float
    step_s: tuple[float, ...]
    other_load: float


Samples = dict[tuple[str, BenchCase], list[Sample]]


@dataclass
class Opened:
    """A subject while it is measured."""

    subject: Subject
    info: Mapping[str, Any]
    base_rss_bytes: int
    load_s: list[float] = field(default_factory=list)

    def record(self) -> SubjectRecord:
        """What the report keeps."""
        load = Summary.of(self.load_s)
        return SubjectRecord(self.subject.label, str(self.subject.path), self.info, load, self.base_rss_bytes)


def analyze(
    samples: Samples,
    subjects: Sequence[SubjectRecord],
    cases: Sequence[BenchCase],
    peaks: Mapping[tuple[str, BenchCase], int],
    bandwidth: Bandwidth,
) -> tuple[BenchResult, ...]:
    """Figures of every case for every subject, in that order."""
    return tuple(
        _result(subject, case, samples[subject.label, case], peaks.get((subject.label, case)), bandwidth)
        for case in cases
        for subject in subjects
    )


def prefill_rate(case: BenchCase, sample: Sample) -> float:
    """Prompt tokens per second, all rows."""
    return case.batch * case.prompt / sample.first_token_s


def decode_rate(case: BenchCase, sample: Sample) -> float:
    """Decoded tokens per second, all rows, the first token excluded."""
    return case.batch * len(sample.step_s) / sum(sample.step_s)


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
    subject: SubjectRecord, case: BenchCase, samples: Sequence[Sample], peak: int | None, bandwidth: Bandwidth
) -> BenchResult:
    tpot_ms = Summary.of([1e3 * sum(sample.step_s) / len(sample.step_s) for sample in samples])
    read = step_bytes(subject.info, case)
    share = read / (tpot_ms.median / 1e3) / bandwidth.bytes_per_second.median if read else None
    return BenchResult(
        label=subject.label,
        case=case,
        ttft_s=Summary.of([sample.first_token_s for sample in samples]),
        prefill_tokens_per_s=Summary.of([prefill_rate(case, sample) for sample in samples]),
        tpot_ms=tpot_ms,
        itl_ms=Percentiles.of([1e3 * gap for sample in samples for gap in sample.step_s]),
        decode_tokens_per_s=Summary.of([decode_rate(case, sample) for sample in samples]),
        peak_rss_bytes=peak,
        step_bytes=read,
        bandwidth_share=share,
        other_load=Summary.of([sample.other_load for sample in samples]),
    )


def compare(samples: Samples, labels: Sequence[str], cases: Sequence[BenchCase]) -> tuple[Comparison, ...]:
    """The first subject over each other one, prefill and decode, round by round."""
    rates = {"prefill": prefill_rate, "decode": decode_rate}
    found = []
    for case in cases:
        for other in labels[1:]:
            for metric, rate in rates.items():
                first, second = (
                    [rate(case, sample) for sample in samples[label, case]] for label in (labels[0], other)
                )
                ratios = paired_ratios(first, second)
                found.append(Comparison(labels[0], other, case, metric, ratios, Summary.of(ratios)))
    return tuple(found)


def warnings_of(
    options: BenchOptions,
    bandwidth: Bandwidth,
    results: Sequence[BenchResult],
    load_before: float,
    load_after: float,
    idle_share: Mapping[str, float],
) -> tuple[str, ...]:
    """What a reader must know before trusting the figures, one sentence each."""
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
    fitting = [result for result in results if 0 < result.step_bytes < bandwidth.cache_bytes]
    if fitting:
        found.append(
            f"a decode step reads less than the last-level cache that this machine reports "
            f"({bandwidth.cache_bytes >> 20} MiB): its share of the memory's bandwidth may exceed 100%"
        )
    return tuple(found)
