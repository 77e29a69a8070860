"""The metrics that a condition may name, and their figures of one process.

In: the runs of one subject's process in one case. Out: figures by the names that the benchmark's document has for
them; one that was not measured is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.analysis import Sample, decode_rate, prefill_rate, step_ms
from llmc.runtimes.bench.results import BenchCase
from llmc.runtimes.machine.summary import Percentiles, Summary


@dataclass(frozen=True)
class ProcessRuns:
    """What was measured in one process.

    Attributes:
        samples: The runs of the case, in turn with the other subject's; at least one.
        load_s: Seconds until the engine was open.
        peak_rss_bytes: Most resident memory by the end of all cases; None when not asked.
    """

    case: BenchCase
    samples: Sequence[Sample]
    load_s: float
    peak_rss_bytes: int | None


def _median(value: Callable[[BenchCase, Sample], float]) -> Callable[[ProcessRuns], float]:
    return lambda runs: Summary.of([value(runs.case, sample) for sample in runs.samples]).median


def _gaps(percentile: str) -> Callable[[ProcessRuns], float]:
    def figure(runs: ProcessRuns) -> float:
        gaps = [1e3 * gap for sample in runs.samples for gap in sample.step_s]
        return float(getattr(Percentiles.of(gaps), percentile))

    return figure


def _joules(runs: ProcessRuns) -> float | None:
    tokens = runs.case.batch * (runs.case.gen - 1)
    joules = [sample.energy_j / tokens for sample in runs.samples if sample.energy_j]
    return Summary.of(joules).median if joules else None


METRICS: Mapping[str, Callable[[ProcessRuns], float | None]] = {
    "decode_tokens_per_s": _median(decode_rate),
    "prefill_tokens_per_s": _median(prefill_rate),
    "ttft_s": _median(lambda case, sample: sample.first_token_s),
    "tpot_ms": _median(lambda case, sample: step_ms(sample)),
    **{f"itl_ms.{percentile}": _gaps(percentile) for percentile in ("p50", "p90", "p95", "p99")},
    "load_s": lambda runs: runs.load_s,
    "peak_rss_bytes": lambda runs: None if runs.peak_rss_bytes is None else float(runs.peak_rss_bytes),
    "joules_per_token": _joules,
}
"""Name in the document -> figure of a process; None: not measured."""
ALIASES = {"decode_tps": "decode_tokens_per_s", "prefill_tps": "prefill_tokens_per_s"}
METRIC_NAMES = (*ALIASES, *METRICS)
"""All names that a condition may use."""


def figures_of(runs: ProcessRuns) -> dict[str, float]:
    """Every figure that was measured, all above 0."""
    figures = {name: figure(runs) for name, figure in METRICS.items()}
    return {name: value for name, value in figures.items() if value is not None}
