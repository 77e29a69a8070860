"""What each pass cost.

In: a :class:`LedgerReport`. Out: a rich table; what cost more than it says in colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from llmc.compiler.cli.tables.rows import fill, names, numbers, size

if TYPE_CHECKING:
    from llmc.compiler.artifact.ledger_report import LedgerEntry, LedgerReport


def ledger_table(report: LedgerReport) -> Table:
    """One row per pass: figures against the graph that the passes began with, then the pass's own step."""
    table = Table(
        *names("pass", "may cost"),
        *numbers("mean KL", "top-1", "largest error", "of this pass", "weights", "nodes"),
        title="Accuracy after each pass",
        caption="logits on the probe prompts, against the graph that the passes began with",
    )
    if reason := next((entry.unmeasured for entry in report.entries if entry.unmeasured), ""):
        table.caption = f"{table.caption}; not measured: {reason}"
    wrong = {finding.place for finding in report.findings}
    return fill(table, (_row(entry, place in wrong) for place, entry in enumerate(report.entries)))


def _row(entry: LedgerEntry, wrong: bool) -> list[RenderableType]:
    if entry.unmeasured:
        figures = ["", "", "not measured", ""]
    else:
        figures = [f"{entry.kl:.3g}", f"{entry.top1:.1%}", f"{entry.logit_error:.3g}", f"{entry.step:.3g}"]
    style = "bold red" if wrong else "" if entry.step or entry.unmeasured else "dim"
    columns = (entry.name, entry.declared, *figures, size(entry.bytes), str(entry.nodes))
    return [Text(column, style=style) for column in columns]
