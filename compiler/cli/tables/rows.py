"""Rows to a rich table: what all tables of the commands share.

In: texts. Out: a :class:`rich.table.Table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Column, Table


def pairs(title: str, rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Two columns without a heading: what, and its value."""
    return fill(Table(title=title, show_header=False), rows)


def fill(table: Table, rows: Iterable[Sequence[RenderableType]]) -> Table:
    """The table with these rows."""
    for row in rows:
        table.add_row(*row)
    return table


def names(*headings: str) -> list[Column]:
    """Columns of words that are not broken."""
    return [Column(heading, no_wrap=True) for heading in headings]


def numbers(*headings: str) -> list[Column]:
    """Columns of figures."""
    return [Column(heading, justify="right", no_wrap=True) for heading in headings]


def size(count: float) -> str:
    """Bytes as people read them, as ``97.5 MiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
