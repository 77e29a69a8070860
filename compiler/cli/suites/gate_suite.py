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
    from llmc.runtimes.bench.results import BenchReport, BenchResult


def gate_suite(gate: GateRecord, *, undecided_fails: bool = False) -> Suite:
    """The suite of ``llmc bench --fail-if``; ``undecided_fails`` as the exit code does."""
    verdicts = [_verdict(condition, gate, undecided_fails) for condition in gate.conditions]
    if not verdicts:
        verdicts = [Verdict("starts", "passed", str(gate.starts), message=sentence(gate))]
    facts = {"compared with": gate.baseline} if gate.baseline else {}
    return Suite("llmc bench", gate.candidate, tuple(verdicts), facts | {"outcome": sentence(gate)})


def figures_suite(report: BenchReport) -> Suite:
    """The suite of a benchmark that judges nothing: a verdict for each engine and case, which all pass."""
    verdicts = tuple(_figures(result, "; ".join(report.warnings)) for result in report.results)
    return Suite("llmc bench", ", ".join(subject.label for subject in report.subjects), verdicts)


def _figures(result: BenchResult, warnings: str) -> Verdict:
    decode, prefill = result.decode_tokens_per_s.median, result.prefill_tokens_per_s.median
    figures = f"decode {decode:.4g} tok/s, prefill {prefill:.4g} tok/s"
    return Verdict(f"{result.label}, {result.case.name}", "passed", figures, message=warnings)


def _verdict(condition: ConditionRecord, gate: GateRecord, undecided_fails: bool) -> Verdict:
    figures = "; ".join(
        f"{item.case}: {item.metric} {figure(item)} ({interval(item)})" for item in condition.comparisons
    )
    limits = ", ".join(dict.fromkeys(f"{item.limit:g}" for item in condition.comparisons))
    unit = "times the baseline's, " if any(item.of_baseline for item in condition.comparisons) else ""
    message = f"{unit}{gate.starts} starts"
    if condition.outcome == "failed":
        message = f"it holds in {', '.join(condition.failed_in)}; {message}"
    elif condition.outcome == "undecided":
        message = f"the intervals hold the limit still; {message}"
    outcome: Outcome = "failed" if condition.outcome == "undecided" and undecided_fails else condition.outcome
    return Verdict(f"fails if {condition.text}", outcome, figures, limits, message)
