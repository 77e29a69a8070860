"""A lint report as a table: one row for all nodes of which the same is said.

In: a report. Out: rich renderables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from llmc.runtimes.lint.lint import FindingGroup, LintReport

LABELS = {"wrong": "silently wrong", "refused": "refused", "slow": "runs slowly"}
STYLES = {"wrong": "bold red", "refused": "red", "slow": "yellow"}


def lint_table(report: LintReport) -> Group:
    """The findings, how many nodes run, and where all of that comes from."""
    return Group(*([_finding_table(report)] if report.findings else []), *_notes(report))


def _finding_table(report: LintReport) -> Table:
    folded = [Column(heading, overflow="fold") for heading in ("rule", "first")]
    count, advice = Column("nodes", justify="right"), "what happens, and what to do"
    title = f"{report.path} on {report.table.title}"
    table = Table("outcome", folded[0], count, folded[1], advice, title=title, show_lines=True)
    for group in report.groups():
        text = Text(f"{group.message}.\n").append(f"{_sentence(group.advice)}", style="dim")
        if group.source:
            text.append(f"\nNot run; source: {group.source}.", style="dim")
        table.add_row(
            Text(LABELS[group.outcome], STYLES[group.outcome]), group.rule, _count(group), _first(group), text
        )
    return table


def _notes(report: LintReport) -> list[Text]:
    counts = report.counts
    parts = [f"{counts[verdict]} {label}" for verdict, label in LABELS.items() if counts[verdict]]  # type: ignore[index]
    parts.append(f"{counts['runs']} run")
    if counts["unknown"]:
        parts.append(f"{counts['unknown']} of which the table says nothing ({', '.join(report.unknown)})")
    inlined = " with the functions' bodies in place" if any("body of" in node.inside for node in report.nodes) else ""
    notes = [f"{len(report.nodes)} nodes{inlined}: {', '.join(parts)}.", report.table.evidence, *report.table.notes]
    return [Text(note) for note in notes]


def _count(group: FindingGroup) -> str:
    return str(group.count) if any(group.nodes) else "-"


def _first(group: FindingGroup) -> str:
    more = ["…"] if group.count > len(group.nodes) else []
    return "\n".join([*group.nodes, *more]) if any(group.nodes) else "the file"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
