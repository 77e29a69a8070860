"""What sections are made of: figures with their tables, keys of engines, texts.

In: charts and cells. Out: HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmc.runtimes.bench.page.runs import Engine
from llmc.runtimes.bench.page.values import Spread
from llmc.runtimes.charts.figures import figure
from llmc.runtimes.charts.markup import Child, Markup, element, join
from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.row_chart import Row, row_chart

LONGEST_SHORT, MOST_SHORT = 13, 6
"""Characters of a name that is written inside a chart, and how many of them."""
MOST_OPEN = 6
"""Charts of a section that are seen at once: those of three cases, where each has two."""
WIDE = 4
"""Columns from which a table's rows are stacked on a phone."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor, title: Its place and its heading.
        body: None where the documents do not hold what it shows.
        wanted: What would add it, to be read behind its title.
    """

    anchor: str
    title: str
    body: Markup | None
    wanted: str = ""


def table(headings: Sequence[str], rows: Iterable[Sequence[Child]]) -> Markup:
    """The first cell of each row is its heading; roles are said, since stacked rows lose theirs."""
    head = element("tr", *(element("th", name, scope="col", role="columnheader") for name in headings), role="row")
    body = [
        element(
            "tr",
            element("th", cells[0], scope="row", role="rowheader"),
            *(
                element("td", cell, data_label=name, role="cell")
                for name, cell in zip(headings[1:], cells[1:], strict=True)
            ),
            role="row",
        )
        for cells in rows
    ]
    groups = (element("thead", head, role="rowgroup"), element("tbody", *body, role="rowgroup"))
    return element("table", *groups, role="table", class_="wide" if len(headings) >= WIDE else None)


def shown(title: str, chart: Markup, numbers: Markup) -> Markup:
    """A chart with its title, and the same numbers as a table that opens."""
    caption = element("figcaption", element("strong", title))
    opened = element(
        "details", element("summary", "The numbers", element("span", f" of {title}", class_="unseen")), numbers
    )
    return element("figure", caption, chart, opened)


def spread_figure(
    title: str,
    axis: str,
    unit: str,
    rows: Sequence[tuple[Engine, Spread]],
    *,
    kind: Literal["bars", "points"] = "bars",
) -> Markup:
    """A row for each engine with its median and its range."""
    marks = [
        Row(engine.tone, engine.title, spread_text(spread, unit), spread.median, spread.low, spread.high)
        for engine, spread in rows
    ]
    cells = [(engine.title, *spread_cells(spread)) for engine, spread in rows]
    numbers = table(("engine", unit or axis, "least", "most"), cells)
    return shown(title, row_chart(title, axis, marks, kind=kind), numbers)


def _end(value: float | None) -> str:
    return "" if value is None else figure(value)


def grid(figures: Iterable[Markup]) -> Markup:
    """Figures beside each other where there is room."""
    return element("div", *figures, class_="grid")


def charts_section(
    anchor: str, title: str, notes: Sequence[str], figures: Sequence[Markup], wanted: str = ""
) -> Section:
    """Notes and the charts below them, those beyond :data:`MOST_OPEN` behind a line that opens.

    Without charts there is no body.
    """
    if not figures:
        return Section(anchor, title, None, wanted)
    shown_first, more = figures[:MOST_OPEN], figures[MOST_OPEN:]
    body = [*map(paragraph, notes), grid(shown_first)]
    if more:
        name = f"{len(more)} more {'chart' if len(more) == 1 else 'charts'}"
        of = element("span", f" of {title}", class_="unseen")
        body.append(element("details", element("summary", name, of), grid(more), class_="more"))
    return Section(anchor, title, join(body), wanted)


def paragraph(text: str) -> Markup:
    """A note below a heading."""
    return element("p", text, class_="note")


def shorts(engines: Sequence[Engine]) -> dict[Engine, str]:
    """What charts call engines: their names where they are few and short, else their numbers."""
    brief = len(engines) <= MOST_SHORT and all(len(engine.name) <= LONGEST_SHORT for engine in engines)
    return {engine: engine.name if brief else str(engine.tone.number) for engine in engines}


def key(engines: Sequence[Engine]) -> Markup:
    """Marker, number and name of each engine; nothing where charts write the names themselves."""
    names = shorts(engines)
    if all(names[engine] == engine.name for engine in engines):
        return Markup("")
    rows = [
        element(
            "li",
            swatch(engine.tone),
            element("b", str(engine.tone.number)),
            element("span", engine.name),
        )
        for engine in engines
    ]
    return element("ul", *rows, class_="key", aria_label="Engines by number")


def swatch(tone: Tone, *, square: bool = False) -> Markup:
    """The marker of a tone for a key, or a square of its colour."""
    mark = element("rect", class_=f"bar {tone.css}", x=1, y=1, width=12, height=12) if square else tone.marker(7, 7)
    return element("svg", mark, viewBox="0 0 14 14", class_="swatch", aria_hidden="true")


def spread_text(spread: Spread, unit: str = "") -> str:
    """``228 tok/s (222 to 244)``, the range where there is one."""
    head = f"{figure(spread.median)}{' ' + unit if unit else ''}"
    if spread.low is None or spread.high is None or spread.low == spread.high:
        return head
    return f"{head} ({figure(spread.low)} to {figure(spread.high)})"


def spread_cells(spread: Spread) -> tuple[str, str, str]:
    """Median, least and most for a table."""
    return _end(spread.median), _end(spread.low), _end(spread.high)


def size_text(size: float | None) -> str:
    """Bytes as ``123 MB``, decimal."""
    return "" if size is None else f"{figure(size / 1e6)} MB" if size < 1e9 else f"{figure(size / 1e9)} GB"


def sections_html(sections: Iterable[Section]) -> Markup:
    """Those that have a body, one after the other."""
    return join(
        element("section", element("h2", section.title), section.body, id=section.anchor)
        for section in sections
        if section.body is not None
    )
