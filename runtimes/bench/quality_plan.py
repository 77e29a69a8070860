"""Puts what subjects have lost beside their speeds, and fair comparisons before others.

In: evaluations that a user named, and a report. Out: the report, its subjects with their qualities, its comparisons
with how the losses stand to each other: those of an equal or smaller loss first, then those of which it is not known,
then a fast loss beside a slow truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.quality import BETTER, UNKNOWN, WORSE, SubjectQuality, quality_of
from llmc.runtimes.bench.results import BenchReport, Comparison, Subject
from llmc.runtimes.bench.rounds import Steps
from llmc.runtimes.bench.text_mode import TextComparison

ORDER = (BETTER, UNKNOWN, WORSE)


@dataclass(frozen=True)
class QualityPlan:
    """Asks for qualities.

    Attributes:
        rows: Of evaluations, by the path that was evaluated; before what is kept on this machine.
        folder: Where figures are kept; None: the user's cache.
    """

    rows: tuple[tuple[Path, SubjectQuality], ...] = ()
    folder: Path | None = None

    def count_steps(self, subjects: Sequence[Subject], options: BenchOptions) -> int:
        """Nothing is measured."""
        return 0

    def extended(self, report: BenchReport, subjects: Sequence[Subject], steps: Steps) -> BenchReport:
        """Look every subject up, by path, label or content."""
        records = []
        for record in report.subjects:
            digest = None if record.artifact is None else record.artifact.sha256
            precision = str(record.info.get("precision", ""))
            quality = quality_of(record.label, Path(record.path), precision, digest, self.rows, self.folder)
            records.append(replace(record, quality=quality))
        known = {record.label: record.quality for record in records if record.quality is not None}
        comparisons = [replace(item, standing=_standing(item, known)) for item in report.comparisons]
        texts = [replace(item, standing=_standing(item, known)) for item in report.text_comparisons]
        return replace(
            report,
            subjects=tuple(records),
            comparisons=tuple(sorted(comparisons, key=_place)),
            text_comparisons=tuple(sorted(texts, key=_place)),
            warnings=(*report.warnings, *_unlike(list(known.items()))),
        )


def _place(item: Comparison | TextComparison) -> int:
    return ORDER.index(item.standing)


def _standing(item: Comparison | TextComparison, known: dict[str, SubjectQuality]) -> str:
    if item.numerator not in known or item.denominator not in known:
        return UNKNOWN
    return known[item.numerator].standing(known[item.denominator])


def _unlike(known: Sequence[tuple[str, SubjectQuality]]) -> list[str]:
    """Whose figures cannot be compared with the first one's, one sentence each."""
    return [
        f"the losses of {known[0][0]} and {label} were measured on other texts or against other references: they are "
        "not compared; run llmc eval with both"
        for label, quality in known[1:]
        if not known[0][1].comparable(quality)
    ]
