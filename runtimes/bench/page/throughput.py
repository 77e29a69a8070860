"""Sections: tokens per second of each case, against batch, and against context.

In: the runs. Out: sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from llmc.runtimes.bench.page.parts import Section, grid, key, paragraph, shorts, shown, spread_figure, table
from llmc.runtimes.bench.page.runs import Case, Engine, Result, Runs
from llmc.runtimes.charts.figures import figure, tick_text
from llmc.runtimes.charts.line_chart import Axes, Point, Series, line_chart
from llmc.runtimes.charts.markup import Markup, join

RATES = {"decode": "decode_tokens_per_s", "prefill": "prefill_tokens_per_s"}
AXES = {"rows": "rows", "prompt": "tokens of prompt"}
MOST_BARS = 3
"""Cases that get bars; more of them are seen better as lines."""


def throughput_sections(runs: Runs) -> list[Section]:
    """Bars, lines over batches, lines over contexts."""
    results = runs.results()
    return [
        Section("throughput", "Throughput", _bars(results), "llmc bench ENGINE"),
        Section(
            "batch",
            "Throughput against batch",
            _lines(results, lambda case: case.batch, lambda case: (case.prompt, case.gen), "rows"),
            "llmc bench --batch 1,4,16",
        ),
        Section(
            "context",
            "Throughput against context",
            _lines(results, lambda case: case.prompt, lambda case: (case.gen, case.batch), "prompt"),
            "llmc bench --prompt 128,512,2048",
        ),
    ]


def _bars(results: Sequence[Result]) -> Markup | None:
    cases = sorted({result.case for result in results})[:MOST_BARS]
    figures = []
    for case in cases:
        for metric, name in RATES.items():
            rows = [(it.engine, spread) for it in results if it.case == case and (spread := it.spread(name))]
            if rows:
                title = f"{metric.capitalize()}, {case.name}"
                figures.append(spread_figure(title, "tokens per second, all rows", "tok/s", rows))
    if not figures:
        return None
    return join(
        [paragraph("Median of the rounds; the thin line reaches from the slowest to the fastest."), grid(figures)]
    )


def _lines(
    results: Sequence[Result],
    place: Callable[[Case], int],
    others: Callable[[Case], tuple[int, int]],
    axis: str,
) -> Markup | None:
    """Charts over ``place``; cases that agree in ``others`` belong to one chart."""
    figures = []
    engines: list[Engine] = []
    for group in sorted({others(result.case) for result in results}):
        inside = [result for result in results if others(result.case) == group]
        if len({place(result.case) for result in inside}) < 2:
            continue
        engines = _distinct([*engines, *(result.engine for result in inside)])
        for metric, name in RATES.items():
            title = f"{metric.capitalize()} by {axis}, {_constant(inside[0].case, axis)}"
            figures += _chart(title, axis, inside, place, name)
    return join([key(engines), grid(figures)]) if figures else None


def _constant(case: Case, axis: str) -> str:
    """What is the same for a whole chart, in words."""
    gen = f"{case.gen:,} new tokens"
    if axis == "rows":
        return f"prompt {case.prompt:,}, {gen}"
    return gen if case.batch == 1 else f"{gen}, {case.batch} rows"


def _distinct(engines: Iterable[Engine]) -> list[Engine]:
    return sorted(dict.fromkeys(engines), key=lambda engine: engine.tone.number)


def _chart(title: str, axis: str, results: Sequence[Result], place: Callable[[Case], int], name: str) -> list[Markup]:
    points: dict[Engine, list[Point]] = {}
    for result in sorted(results, key=lambda it: place(it.case)):
        if spread := result.spread(name):
            point = Point(place(result.case), spread.median, spread.low, spread.high)
            points.setdefault(result.engine, []).append(point)
    if not points:
        return []
    engines = _distinct(points)
    names = shorts(engines)
    series = [Series(engine.tone, engine.name, names[engine], tuple(points[engine])) for engine in engines]
    rows = [
        (engine.title, tick_text(p.x), figure(p.y), *("" if end is None else figure(end) for end in (p.low, p.high)))
        for engine in engines
        for p in points[engine]
    ]
    numbers = table(("engine", AXES[axis], "tok/s", "least", "most"), rows)
    return [shown(title, line_chart(title, Axes(AXES[axis], "tok/s, all rows"), series), numbers)]
