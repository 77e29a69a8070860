"""The roofline of a benchmark's cases, computed of times that are there: nothing runs for it.

In: what tokens cost each subject, and a report. Out: the report with its :class:`~.roofline.Roofline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmc.runtimes.bench.ceilings import Ceilings
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, BenchResult, Subject, SubjectRecord
from llmc.runtimes.bench.roofline import DECODE, PREFILL, Roofline, RooflineShare, StepWork, floor_seconds
from llmc.runtimes.bench.rounds import Steps
from llmc.runtimes.machine.gpu import is_on_cuda


@dataclass(frozen=True)
class RooflinePlan:
    """Asks for a roofline; ``work`` by label, of those subjects whose graphs were read."""

    work: Mapping[str, StepWork] = field(default_factory=dict)

    def count_steps(self, subjects: Sequence[Subject], options: BenchOptions) -> int:
        """Nothing is measured."""
        return 0

    def extended(self, report: BenchReport, subjects: Sequence[Subject], steps: Steps) -> BenchReport:
        """Compare the report's times with its ceilings."""
        ceilings = report.ceilings or Ceilings((report.bandwidth,))
        shares = shares_of(report.results, report.subjects, self.work, ceilings)
        return replace(report, roofline=Roofline(self.work, shares))


def shares_of(
    results: Iterable[BenchResult],
    subjects: Iterable[SubjectRecord],
    work: Mapping[str, StepWork],
    ceilings: Ceilings,
) -> tuple[RooflineShare, ...]:
    """Shares of every result, prompt and step; those that cannot be told are left out.

    Args:
        results: Measured.
        subjects: Theirs.
        work: By label; a subject that is not there is compared with memory alone, and in decode steps alone.
        ceilings: Of the machine.
    """
    infos = {subject.label: subject.info for subject in subjects}
    shares = []
    for result in results:
        info, own = infos[result.label], work.get(result.label)
        prefill, decode = (own.prefill(result.case), own.decode(result.case)) if own else (None, None)
        phases = (
            (PREFILL, int(info.get("weight_bytes") or 0), prefill, result.ttft_s.median),
            (DECODE, result.step_bytes, decode, result.tpot_ms.median / 1e3),
        )
        for phase, size, operations, measured in phases:
            floor = floor_seconds(size, operations, ceilings, on_cuda=is_on_cuda(info))
            if floor is not None and (operations is not None or phase == DECODE):
                least, bound = floor
                shares.append(
                    RooflineShare(
                        *(result.label, result.case, phase, size, operations, least, measured),
                        share=least / measured,
                        bound=bound,
                    )
                )
    return tuple(shares)
