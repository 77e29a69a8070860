"""What was pushed.

In: a :class:`~llmc.compiler.artifact.reports.PushReport`. Out: a rich table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmc.compiler.cli.tables.rows import pairs, size

if TYPE_CHECKING:
    from rich.table import Table

    from llmc.compiler.artifact.reports import PushReport


def push_table(report: PushReport) -> Table:
    """Where it is."""
    files = report.files
    rows = [
        ("branch", report.revision),
        ("commit", report.commit or ""),
        ("address", report.address or ""),
        ("files", f"{len(files) + 1}, {size(sum(files.values()))}"),
    ]
    return pairs(f"pushed to {report.repository}", rows)
