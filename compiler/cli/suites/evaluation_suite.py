"""What engines lose against their model, as a suite.

In: an :class:`EvaluationReport`. Out: a verdict for each engine and peer; figures without a limit pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmc.compiler.ci.suite import Suite, Verdict
from llmc.compiler.cli.tables.evaluation_table import MEGABYTE, spread

if TYPE_CHECKING:
    from llmc.runtimes.evaluation.report import EvaluatedRow, EvaluationReport


def evaluation_suite(report: EvaluationReport) -> Suite:
    """The suite of ``llmc eval``."""
    text, reference = report.text, report.reference
    facts = {
        "reference": f"{reference.name}, perplexity {spread(reference.perplexity, '.3f')}",
        "text": f"{text.name}, {text.positions} positions",
    }
    return Suite("llmc eval", reference.name, tuple(map(_verdict, report.rows)), facts)


def _verdict(row: EvaluatedRow) -> Verdict:
    quality = row.quality
    figures = (
        f"perplexity {spread(quality.candidate_perplexity, '.3f')}",
        f"top-1 {spread(quality.top1_agreement, '.2f', 100)} %",
        f"{row.bytes / MEGABYTE:.1f} MB",
        *([f"measured on {row.where}"] if row.where else []),
    )
    return Verdict(f"{row.label}: mean KL", "passed", spread(quality.mean_kl, ".5f"), message=", ".join(figures))
