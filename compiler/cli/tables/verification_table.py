"""Checks of an engine against its model.

In: a :class:`VerifyReport`. Out: what was lost in words, rich tables of the graphs that ran, or the error of a report
that did not pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmc.compiler.base.errors import VerificationError
from llmc.compiler.cli.tables.rows import fill, numbers

if TYPE_CHECKING:
    from llmc.compiler.artifact.reports import Check, GraphChecks, VerifyReport

WARNING = "bold red"


def verification_tables(report: VerifyReport) -> Group:
    """What was lost, then each graph."""
    return Group(*loss_lines(report), *graph_tables(report))


def loss_lines(report: VerifyReport) -> list[Text]:
    """What was lost, and what to do about it where that is noticeable; first of all that a command shows."""
    loss = report.loss
    if loss is None:
        return [Text("not compared with the model", style="yellow")]
    sentence = f"{loss.sentence[0].upper()}{loss.sentence[1:]} ({loss.graph})"
    lines = [Text(sentence, style=WARNING if loss.warns else "green")]
    return [*lines, *([Text(f"warning: {report.remedy}", style=WARNING)] if report.remedy else [])]


def graph_tables(report: VerifyReport) -> list[RenderableType]:
    """One table per graph that ran, a line for each that did not, and the user's own limit."""
    most = [] if report.most is None else [fill(Table(title="Limit", show_header=False), [_row(report.most)])]
    return [*(_graph_table(graph) for graph in report.graphs), *most]


def _graph_table(graph: GraphChecks) -> RenderableType:
    """One row per check: what was measured and what is tolerated."""
    if not graph.checks:
        return Text(f"{graph.graph} was not verified: {graph.remark}", style="yellow")
    title = f"Verification of {graph.graph}; operators: {graph.operators}"
    table = Table("check", *numbers("measured", "tolerated"), "", title=title)
    table.caption = f"measured: {graph.remark}" if graph.remark else None
    return fill(table, map(_row, graph.checks))


def _row(check: Check) -> tuple[RenderableType, ...]:
    return check.name, number(check.measured), tolerance(check), _verdict(check)


def failure_of(report: VerifyReport, directory: Path) -> VerificationError:
    """The error of a report that did not pass: each check that failed, and what to do."""
    several = sum(bool(graph.checks) for graph in report.graphs) > 1
    checks = [(check, f" in {graph.graph}" if several else "") for graph in report.graphs for check in graph.checks]
    checks += [(report.most, "")] if report.most is not None else []
    failed = "; ".join(
        f"{check.name} is {number(check.measured)}{where}, tolerated {tolerance(check)}"
        for check, where in checks
        if not check.passed
    )
    return VerificationError(f"{directory} does not say what its model says: {failed}; {cure(report.remedy)}")


def cure(remedy: str) -> str:
    """What to do where a check failed."""
    return remedy or "compile it again, at a higher precision if need be"


def tolerance(check: Check) -> str:
    """``≤ 0.001``, or a dash where the value is only reported."""
    if check.tolerance is None:
        return "-"
    return f"{'≤' if check.at_most else '≥'} {number(check.tolerance)}"


def number(value: float) -> str:
    """A whole number as such, others with four digits."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _verdict(check: Check) -> Text:
    if check.tolerance is None:
        return Text("-")
    return Text("within", style="green") if check.passed else Text("FAILED", style="bold red")
