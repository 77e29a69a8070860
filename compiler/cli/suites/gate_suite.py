"""What a benchmark came out with, as a suite.

In: a :class:`GateRecord`, or a whole report. Out: a verdict for each condition. Where nothing was judged, one for
each figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmc.compiler.ci.suite import Outcome, Suite, Verdict
from llmc.runtimes.bench.gate.table import figure, interval, sentence

if TYPE_CHECKING:
    from llmc.runtimes.bench.gate.record import ConditionRecord, GateRecord
    from llmc.runtimes.bench.load.records import LoadPoint
    from llmc.runtimes.bench.results import BenchReport, BenchResult


def gate_suite(gate: GateRecord, *, undecided_fails: bool = False) -> Suite:
    """The suite of ``llmc bench --fail-if``; ``undecided_fails`` as the exit code does."""
    verdicts = [_verdict(condition, gate, undecided_fails) for condition in gate.conditions]
    if not verdicts:
        verdicts = [Verdict("starts", "passed", str(gate.starts), message=sentence(gate))]
    facts = {"compared with": gate.baseline} if gate.baseline else {}
    command = "llmc load" if gate.unit == "repeats" else "llmc bench"
    return Suite(command, gate.candidate, tuple(verdicts), facts | {"outcome": sentence(gate)})


def figures_suite(report: BenchReport) -> Suite:
    """The suite of a benchmark that judges nothing: a verdict for each engine and case, which all pass."""
    warnings = "; ".join(report.warnings)
    verdicts = tuple(_figures(result, warnings) for result in report.results)
    if report.load is not None:
        verdicts = tuple(_load_figures(point, warnings) for point in report.load.points)
    return Suite(
        "llmc bench" if report.load is None else "llmc load",
        ", ".join(subject.label for subject in report.subjects),
        verdicts,
    )


def _figures(result: BenchResult, warnings: str) -> Verdict:
    decode, prefill = result.decode_tokens_per_s.median, result.prefill_tokens_per_s.median
    figures = f"decode {decode:.4g} tok/s, prefill {prefill:.4g} tok/s"
    return Verdict(f"{result.label}, {result.case.name}", "passed", figures, message=warnings)


def _load_figures(point: LoadPoint, warnings: str) -> Verdict:
    first = (
        "no answer"
        if point.ttft_ms is None
        else f"TTFT p50 {point.ttft_ms.p50:.4g} ms, p99 {point.ttft_ms.p99:.4g} ms"
    )
    figures = f"{point.output_tokens_per_s:.4g} tok/s, {first}, {point.requests - point.ok} failed"
    return Verdict(f"{point.label}, {point.name}", "passed", figures, message=warnings)


def _verdict(condition: ConditionRecord, gate: GateRecord, undecided_fails: bool) -> Verdict:
    figures = "; ".join(
        f"{item.case}: {item.metric} {figure(item)} ({interval(item)})" for item in condition.comparisons
    )
    limits = ", ".join(dict.fromkeys(f"{item.limit:g}" for item in condition.comparisons))
    unit = "times the baseline's, " if any(item.of_baseline for item in condition.comparisons) else ""
    message = f"{unit}{gate.starts} {gate.unit}"
    if condition.outcome == "failed":
        message = f"it holds in {', '.join(condition.failed_in)}; {message}"
    elif condition.outcome == "undecided":
        message = f"the intervals hold the limit still; {message}"
    outcome: Outcome = "failed" if condition.outcome == "undecided" and undecided_fails else condition.outcome
    return Verdict(f"fails if {condition.text}", outcome, figures, limits, message)
