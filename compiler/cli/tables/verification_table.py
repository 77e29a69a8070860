"""Checks of an engine against its model.

In: a :class:`VerifyReport`. Out: a rich table, or the error of a report that did not pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmc.compiler.base.errors import VerificationError
from llmc.compiler.cli.tables.rows import fill, numbers

if TYPE_CHECKING:
    from llmc.compiler.artifact.reports import Check, VerifyReport


def verification_table(report: VerifyReport) -> Table:
    """One row per check: what was measured and what is tolerated."""
    table = Table("check", *numbers("measured", "tolerated"), "", title="Verification")
    table.caption = f"measured: {report.where}" if report.where else None
    return fill(
        table, ((check.name, number(check.measured), tolerance(check), _verdict(check)) for check in report.checks)
    )


def failure_of(report: VerifyReport, directory: Path) -> VerificationError:
    """The error of a report that did not pass: each check that failed, and what to do."""
    failed = "; ".join(
        f"{check.name} is {number(check.measured)}, tolerated {tolerance(check)}"
        for check in report.checks
        if not check.passed
    )
    return VerificationError(
        f"{directory} does not say what its model says: {failed}; compile it again, at a higher precision if need be"
    )


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
    return Text("passed", style="green") if check.passed else Text("FAILED", style="bold red")
