"""Asks where the time of a case goes, in processes of their own that are not timed otherwise.

In: subjects and cases. Out: the report with its :class:`~.operators.OperatorTimes`. The profiler of ONNX Runtime on
the CPU tells it, llmc's own operators included; other runtimes and peers are named as not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.operators import OperatorShares, OperatorTimes, kinds_of
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, Subject
from llmc.runtimes.bench.roofline import DECODE, PREFILL
from llmc.runtimes.bench.rounds import Steps
from llmc.runtimes.bench.workers.remote import LLMC_WORKER, WorkerProcess

PROFILED = "onnxruntime-cpu"
STEPS = 16
"""Steps that are profiled at most."""


@dataclass(frozen=True)
class OperatorsPlan:
    """Asks for the operators of some cases."""

    cases: tuple[BenchCase, ...]

    def count_steps(self, subjects: Sequence[Subject], options: BenchOptions) -> int:
        """One for each subject and case, at most."""
        return len(self.cases) * len(subjects)

    def extended(self, report: BenchReport, subjects: Sequence[Subject], steps: Steps) -> BenchReport:
        """Profile every subject that can be."""
        infos = {record.label: record.info for record in report.subjects}
        shares: list[OperatorShares] = []
        remarks = []
        for subject in subjects:
            runtime = str(infos[subject.label].get("runtime", "another program"))
            if subject.command != LLMC_WORKER or runtime != PROFILED:
                remarks.append(f"{subject.label}: {runtime} does not tell how long its operators take")
                continue
            for case in self.cases:
                steps.begin(f"{subject.label}, {case.name}: operators")
                shares += _profiled(subject, case, report.options)
        return replace(report, operators=OperatorTimes(tuple(shares), tuple(remarks)))


def _profiled(subject: Subject, case: BenchCase, options: BenchOptions) -> list[OperatorShares]:
    shorter = replace(case, gen=min(case.gen, STEPS + 1))
    with WorkerProcess(subject.label, subject.command) as worker:
        fields: dict[str, Any] = {**asdict(shorter), "seed": options.seed}
        answer = worker.request("operators", path=str(subject.path), threads=options.threads, **fields)
    return [_share(subject.label, case, phase, answer[phase]) for phase in (PREFILL, DECODE)]


def _share(label: str, case: BenchCase, phase: str, found: dict[str, Any]) -> OperatorShares:
    operators, seconds, choosing = found["operators"], found["seconds"], found["choosing"]
    kinds = kinds_of(operators, seconds, choosing)
    return OperatorShares(label, case, phase, seconds + choosing, kinds, operators, found["calls"])
