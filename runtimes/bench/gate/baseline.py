"""A baseline that was measured earlier, from its report.

In: the file of a report, and what is about to be measured. Out: a :class:`~.run.RecordedBaseline`.

Figures of two runs differ by what the machine did in between, too; no interval knows of that. So the report must at
least be of the same machine, the same cases, threads and definitions, and of several processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.document import read_report
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.gate.run import RecordedBaseline, figures_by_case
from llmc.runtimes.bench.latency import llmc_subject
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import CONVENTIONS, BenchCase, BenchReport, Subject
from llmc.runtimes.machine.fingerprint import MachineFingerprint, machine_fingerprint

log = logging.getLogger(__name__)
FEWEST_STARTS = 5


def read_baseline(
    path: Path,
    cases: Sequence[BenchCase],
    options: BenchOptions,
    machine: MachineFingerprint,
    *,
    anyway: bool = False,
) -> RecordedBaseline:
    """Figures of the candidate of an earlier run.

    Args:
        path: What ``llmc bench ENGINE --starts N --json FILE`` wrote.
        cases, options, machine: What is about to be measured, how, and where.
        anyway: Only warn where the earlier run was another machine's, or measured otherwise.

    Raises:
        UsageError: it is no such report, has other cases, or is not comparable.
    """
    report = read_report(path)
    if report.gate is None:
        raise UsageError(
            f"{path} has the runs of one process, whose speed another one need not have; write a baseline with "
            f"llmc bench ENGINE --starts 20 --json {path}, or give its engine's directory as the baseline"
        )
    figures = figures_by_case(report.gate.measured, report.gate.candidate)
    for case in cases:
        if (count := len(figures.get(case.name, ()))) < FEWEST_STARTS:
            raise UsageError(
                f"{path} has {count} starts of {case.name}, and {FEWEST_STARTS} are needed; it has "
                f"{', '.join(figures)}: measure the baseline with the same --prompt, --gen and --batch, --starts 20"
            )
    if differences := "; ".join(_differences(report, options, machine)):
        if not anyway:
            raise UsageError(
                f"{path} is not comparable: {differences}; measure the baseline again, better as a directory in the "
                "same run, or add --baseline-anyway"
            )
        log.warning("%s is compared although %s", path, differences)
    log.warning(
        "%s was measured at another time: what the machine itself became slower or faster since then counts as the "
        "engine's; a baseline's directory is measured in turn instead",
        path,
    )
    return RecordedBaseline(path.name, figures)


def subjects_of_gate(
    directories: Sequence[Path], cases: Sequence[BenchCase], options: BenchOptions, gate: GateOptions
) -> tuple[Subject, Subject | RecordedBaseline | None]:
    """The engine that is judged, and what it is compared with.

    Raises:
        UsageError: not one engine, or a baseline that is none.
    """
    if len(directories) != 1:
        raise UsageError(
            f"--fail-if and --starts judge one engine, not {len(directories)}; the other is --baseline DIR"
        )
    candidate = llmc_subject(directories[0])
    if gate.baseline is None:
        return candidate, None
    path = Path(gate.baseline)
    if path.is_dir():
        return candidate, llmc_subject(path, f"{path.resolve().name}, baseline")
    return candidate, read_baseline(path, cases, options, machine_fingerprint(), anyway=gate.baseline_anyway)


def _differences(report: BenchReport, options: BenchOptions, machine: MachineFingerprint) -> Iterator[str]:
    """What was otherwise, a clause each."""
    for key, text in CONVENTIONS.items():
        if report.conventions.get(key) != text:
            yield f"its {key} is defined otherwise ({report.conventions.get(key, 'not at all')})"
    then = report.machine
    for what, before, now in (
        ("its processor is", then.cpu_model, machine.cpu_model),
        ("its cores are", then.physical_cores, machine.physical_cores),
        ("its GPUs are", _names(then), _names(machine)),
        ("its --threads is", report.options.threads, options.threads),
        ("its --runs is", report.options.runs, options.runs),
    ):
        if before != now:
            yield f"{what} {before}, here {now}"


def _names(machine: MachineFingerprint) -> str:
    return ", ".join(gpu.name for gpu in machine.gpus) or "none"
