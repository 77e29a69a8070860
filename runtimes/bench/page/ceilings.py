"""Sections: how near engines come to their machine's ceilings, and how a step grows with tokens and context.

In: the runs. Out: sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.page.parts import Section, charts_section, grid, key, shorts, shown, table
from llmc.runtimes.bench.page.runs import Case, Document, Engine, Runs
from llmc.runtimes.charts.figures import figure, tick_text
from llmc.runtimes.charts.line_chart import Axes, Point, Series, line_chart
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.row_chart import Row, row_chart

PHASES = ("prefill", "decode")
_NOTE = (
    "The ceiling is what the machine could do at most: read weights and cache at the bandwidth that was measured, or "
    "compute at its measured rate, whichever takes longer. More than 100 % is possible where a cache holds a part."
)


@dataclass(frozen=True)
class Share:
    """How much of a ceiling an engine reaches; ``bound`` is what the ceiling is of."""

    engine: Engine
    case: Case
    phase: str
    share: float
    bound: str


def roofline_section(runs: Runs) -> Section:
    """Shares of the ceilings, of the roofline where there is one, else of the bandwidth in decode steps."""
    shares = [share for document in runs.documents for share in _shares(runs, document)]
    groups = sorted({(share.case, share.phase) for share in shares}, key=lambda it: (it[0], -PHASES.index(it[1])))
    figures = [
        _chart(case, phase, [it for it in shares if (it.case, it.phase) == (case, phase)]) for case, phase in groups
    ]
    machines = [line for document in runs.documents for line in _machine(document, alone=len(runs.documents) == 1)]
    return charts_section("roofline", "Share of the ceiling", [_NOTE, *machines], figures, "llmc bench ENGINE")


def _shares(runs: Runs, document: Document) -> list[Share]:
    found = []
    for value in document.value.at("roofline", "shares"):
        engine, case = runs.engine(document, value.at("label").text), Case.of(value.at("case"))
        share, phase = value.at("share").positive, value.at("phase").text
        if engine is not None and case is not None and share is not None and phase in PHASES:
            found.append(Share(engine, case, phase, share, value.at("bound").text))
    if found:
        return found
    return [
        Share(it.engine, it.case, "decode", share, "memory")
        for it in runs.results()
        if it.engine.document is document and (share := it.value.at("bandwidth_share").positive) is not None
    ]


def _chart(case: Case, phase: str, shares: Sequence[Share]) -> Markup:
    title = f"Share in {phase}, {case.name}"
    rows = [
        Row(it.engine.tone, it.engine.title, f"{it.share:.0%}{' of ' + it.bound if it.bound else ''}", 100 * it.share)
        for it in shares
    ]
    chart = row_chart(title, "percent of the ceiling", rows, reference=100.0)
    numbers = table(
        ("engine", "percent", "bound by"), [(it.engine.title, figure(100 * it.share), it.bound) for it in shares]
    )
    return shown(title, chart, numbers)


def _machine(document: Document, *, alone: bool) -> list[str]:
    """The ceilings in words, where they were measured."""
    ceilings = document.value.at("ceilings")
    names = {
        "reads": ("bytes_per_second", "reads {} GB/s"),
        "float32": ("operations_per_second", "float32 {} GFLOP/s"),
        "int8": ("operations_per_second", "int8 {} GOP/s"),
    }
    parts = []
    for name, (rate, text) in names.items():
        rates = [it.at(rate).spread for it in ceilings.at(name)]
        best = max((rate.median for rate in rates if rate is not None), default=None)
        if best is not None:
            parts.append(text.format(figure(best / 1e9)))
    head = "This machine" if alone else document.name
    return [f"{head}: {', '.join(parts)}."] if parts else []


def sweep_sections(runs: Runs) -> list[Section]:
    """A step of several tokens, and steps behind long contexts."""
    return [
        _sweep(runs, "curve", "Time of a step against its tokens", "tokens of a step", "llmc bench --curve"),
        _sweep(
            runs,
            "contexts",
            "Time of a step against context",
            "tokens in the cache",
            "llmc bench --contexts 128,1024,4096",
        ),
    ]


def _sweep(runs: Runs, name: str, title: str, axis: str, wanted: str) -> Section:
    points: dict[Engine, list[Point]] = {}
    remarks: list[str] = []
    for document in runs.documents:
        remarks += [remark.text for remark in document.value.at(name, "remarks") if remark.text]
        for value in document.value.at(name, "points"):
            engine, tokens = runs.engine(document, value.at("label").text), value.at("tokens").positive
            spread = value.at("step_ms").spread
            if engine is not None and tokens is not None and spread is not None:
                points.setdefault(engine, []).append(Point(tokens, spread.median, spread.low, spread.high))
    if not points:
        return Section(name, title, None, wanted)
    engines = sorted(points, key=lambda it: it.tone.number)
    ordered = {engine: tuple(sorted(points[engine], key=lambda it: it.x)) for engine in engines}
    names = shorts(engines)
    series = [Series(engine.tone, engine.name, names[engine], ordered[engine]) for engine in engines]
    cells = [(engine.title, tick_text(it.x), figure(it.y)) for engine in engines for it in ordered[engine]]
    charts = [
        shown(
            "Median step",
            line_chart(title, Axes(axis, "milliseconds, median"), series),
            table(("engine", axis, "ms"), cells),
        )
    ]
    notes = [element("p", remark, class_="note") for remark in remarks]
    return Section(name, title, join([key(engines), *notes, grid(charts)]))
