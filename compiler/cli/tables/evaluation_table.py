"""What engines lose against their model.

In: an :class:`EvaluationReport`. Out: rich tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmc.compiler.cli.tables.rows import fill, names, numbers

if TYPE_CHECKING:
    from llmc.runtimes.evaluation.perplexity import Estimate
    from llmc.runtimes.evaluation.report import EvaluatedRow, EvaluationReport

MEGABYTE = 1e6


def evaluation_tables(report: EvaluationReport) -> Group:
    """What was compared, the figures with their standard errors, and how divergences are spread."""
    text, reference = report.text, report.reference
    begins = "no BOS" if text.bos is None else f"token {text.bos} leads each in"
    lines = (
        f"reference: {reference.name} ({reference.runtime}), perplexity {spread(reference.perplexity, '.4f')}",
        f"text: {text.name}, {text.windows} windows of {text.window} tokens ({begins}), positions {text.first} to "
        f"{text.window - 2} of each scored: {text.positions:,}",
    )
    elsewhere = [Text(f"{row.label} was measured on {row.where}") for row in report.rows if row.where]
    return Group(*map(Text, lines), *elsewhere, figures_table(report), divergence_table(report))


def figures_table(report: EvaluationReport) -> Table:
    """One row for each engine and peer."""
    headings = ("MB", "perplexity", "mean KL", "99 % KL", "top-1 %", "mean Δp %", "RMS Δp %", "first divergence")
    table = Table(*names("engine"), *numbers(*headings), title="Quality (± standard error)")
    table.caption = (
        f"first divergence: greedy tokens before the first other one, of {report.rows[0].greedy_tokens}; mean of "
        f"{len(report.rows[0].equal_tokens)} prompts"
    )
    return fill(table, (_figures(row) for row in report.rows))


def _figures(row: EvaluatedRow) -> list[str]:
    quality = row.quality
    return [
        row.label,
        f"{row.bytes / MEGABYTE:.1f}",
        spread(quality.candidate_perplexity, ".3f"),
        spread(quality.mean_kl, ".5f"),
        f"{quality.kl_p99:z.4f}",
        spread(quality.top1_agreement, ".2f", 100),
        spread(quality.mean_delta_p, ".3f", 100),
        spread(quality.rms_delta_p, ".3f", 100),
        spread(row.first_divergence, ".1f"),
    ]


def divergence_table(report: EvaluationReport) -> Table:
    """How the divergences of the positions are spread."""
    headings = ("mean", "median", "90 %", "95 %", "99 %", "99.9 %", "largest")
    table = Table(*names("engine"), *numbers(*headings), title="KL divergence, nats")
    rows = ((row.label, row.quality) for row in report.rows)
    fields = ("median_kl", "kl_p90", "kl_p95", "kl_p99", "kl_p999", "max_kl")
    return fill(
        table,
        (
            (label, f"{quality.mean_kl.value:z.6f}", *(f"{getattr(quality, name):z.6f}" for name in fields))
            for label, quality in rows
        ),
    )


def spread(estimate: Estimate | None, form: str, scale: float = 1.0) -> str:
    """``value ± error``; a dash where there is none."""
    if estimate is None:
        return "-"
    return f"{format(estimate.value * scale, f'z{form}')} ± {format(estimate.error * scale, form)}"
