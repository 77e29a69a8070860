"""Tables of figures by case and engine, and how one figure is written.

In: headings, summaries. Out: rich tables and text.
"""

from __future__ import annotations

from rich.table import Column, Table

from llmc.runtimes.machine.summary import Summary


def figures_table(title: str, *headings: str, first: str = "case") -> Table:
    """A table of figures by case and engine; ``first`` heads the column of the former."""
    figures = (Column(heading, justify="right") for heading in headings)
    return Table(Column(first, no_wrap=True), "engine", *figures, title=title)


def spread(summary: Summary, form: str, *, scale: float = 1.0) -> str:
    """``median (min - max)`` in one format; the median alone when there is one sample."""
    median = format(summary.median * scale, form)
    if summary.count == 1:
        return median
    return f"{median} ({format(summary.minimum * scale, form)} - {format(summary.maximum * scale, form)})"
