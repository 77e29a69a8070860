"""What ``llmc bench`` does where it judges an engine.

In: engines and options. Out: a report with its gate, the suite of it, and how the command ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.base.errors import GateError, UndecidedError, UsageError
from llmc.compiler.cli.output import Output
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.options import BenchOptions

if TYPE_CHECKING:
    from llmc.compiler.ci.suite import Suite
    from llmc.runtimes.bench.latency import StudyPlan
    from llmc.runtimes.bench.results import BenchCase, BenchReport
    from llmc.runtimes.bench.rounds import Progress


def measure_gate(
    directories: Sequence[Path],
    peers: Sequence[str],
    cases: Sequence[BenchCase],
    options: BenchOptions,
    gate: GateOptions,
    studies: Sequence[StudyPlan],
    progress: Progress,
) -> BenchReport:
    """Start one engine, and its baseline where that is one too, until the conditions are decided.

    Raises:
        UsageError: what is asked for does not fit together.
        LlmcError: what a worker raised.
    """
    from llmc.runtimes.bench.gate.baseline import subjects_of_gate
    from llmc.runtimes.bench.gate.run import run_gate

    if peers:
        raise UsageError("--fail-if and --starts judge llmc's own engines; leave --peer out")
    candidate, baseline = subjects_of_gate(directories, cases, options, gate)
    return run_gate(candidate, baseline, cases, options, gate, progress=progress, studies=studies)


def bench_suite(report: BenchReport, gate: GateOptions) -> Suite:
    """What was judged; else the figures, which all pass."""
    from llmc.compiler.cli.suites.gate_suite import figures_suite, gate_suite

    if report.gate is None:
        return figures_suite(report)
    return gate_suite(report.gate, undecided_fails=gate.undecided == "fail")


def end_gate(report: BenchReport, gate: GateOptions, shown: Output) -> None:
    """End with the gate's exit code where it did not pass; the report is shown already."""
    if report.gate is None or report.gate.outcome == "passed":
        return
    from llmc.runtimes.bench.gate.table import sentence

    if report.gate.outcome == "failed":
        shown.fail(GateError(sentence(report.gate)))
    if gate.undecided == "fail":
        shown.fail(UndecidedError(sentence(report.gate)))
    shown.note(f"warning: {sentence(report.gate)}")
