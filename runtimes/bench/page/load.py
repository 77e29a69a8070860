"""Sections: engines and servers under load.

In: the runs. Out: rates and latencies against users or requests a second, and how latencies are distributed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.page.latency import percentile_figure
from llmc.runtimes.bench.page.parts import Section, charts_section, grid, key, shorts, shown, table
from llmc.runtimes.bench.page.runs import Engine, Runs
from llmc.runtimes.bench.page.values import Value
from llmc.runtimes.charts.figures import figure, tick_text
from llmc.runtimes.charts.line_chart import Axes, Point, Series, line_chart
from llmc.runtimes.charts.markup import Markup, join

SWEEPS = {"users": "users", "rate": "requests a second that arrive"}
LINES = (
    ("Output tokens per second", "tok/s", ("output_tokens_per_s",)),
    ("Requests per second", "requests/s", ("requests_per_s",)),
    ("Goodput", "good requests/s", ("goodput_per_s",)),
    ("TTFT, median", "ms", ("ttft_ms", "p50")),
    ("TTFT, 99 % of requests", "ms", ("ttft_ms", "p99")),
    ("TPOT, median", "ms", ("tpot_ms", "p50")),
)
"""Title, unit of y, keys of a point's figure."""
LATENCIES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "End to end"}
_WORTH = (
    "The marker is p50, the short lines are p90, p95 and p99 of the requests that counted. A percentile of few "
    "requests says little: the true p99 may be above all of fewer than 368 of them."
)


@dataclass(frozen=True)
class Loaded:
    """A point of an engine."""

    engine: Engine
    name: str
    value: Value


def load_sections(runs: Runs) -> list[Section]:
    """Lines over the sweep, and latencies of each load."""
    points = list(_points(runs))
    wanted = "llmc load ENGINE --users 1,2,4,8"
    return [
        Section("load", "Under load", _lines(points), wanted),
        charts_section("load-latency", "Latency under load", [_WORTH], _latencies(points), wanted),
    ]


def _points(runs: Runs) -> Iterable[Loaded]:
    """The first measurement of each load."""
    for document in runs.documents:
        for value in document.value.at("load", "points"):
            engine = runs.engine(document, value.at("label").text)
            if engine is not None and not value.at("repeat").number:
                yield Loaded(engine, value.at("point").text or "load", value)


def _lines(points: Sequence[Loaded]) -> Markup | None:
    """A chart for each figure, where a sweep has at least two loads; else a table."""
    figures: list[Markup] = []
    engines: list[Engine] = []
    for sweep, axis in SWEEPS.items():
        inside = [it for it in points if it.value.at(sweep).positive is not None]
        if len({it.value.at(sweep).positive for it in inside}) > 1:
            engines = sorted({*engines, *(it.engine for it in inside)}, key=lambda engine: engine.tone.number)
            figures += [chart for line in LINES if (chart := _chart(sweep, axis, inside, *line))]
    if not points:
        return None
    rows = [
        (it.engine.title, it.name, *(_cell(it.value.at(*keys).number) for _, _, keys in LINES), _failed(it.value))
        for it in points
    ]
    numbers = table(("engine", "load", *(f"{title}, {unit}" for title, unit, _ in LINES), "failed"), rows)
    return join([key(engines) if engines else None, grid(figures) if figures else None, numbers])


def _cell(value: float | None) -> str:
    return "" if value is None else figure(value)


def _failed(value: Value) -> str:
    requests, ok = value.at("requests").number, value.at("ok").number
    return "" if requests is None or ok is None else f"{requests - ok:.0f} of {requests:.0f}"


def _chart(
    sweep: str, axis: str, points: Sequence[Loaded], title: str, unit: str, keys: tuple[str, ...]
) -> Markup | None:
    found: dict[Engine, list[Point]] = {}
    for it in sorted(points, key=lambda it: it.value.at(sweep).positive or 0.0):
        place, height = it.value.at(sweep).positive, it.value.at(*keys).positive
        if place is not None and height is not None:
            found.setdefault(it.engine, []).append(Point(place, height))
    if not any(len(each) > 1 for each in found.values()):
        return None
    engines = sorted(found, key=lambda engine: engine.tone.number)
    names = shorts(engines)
    series = [Series(engine.tone, engine.name, names[engine], tuple(found[engine])) for engine in engines]
    name = f"{title}, by {sweep}"
    rows = [(engine.title, tick_text(point.x), figure(point.y)) for engine in engines for point in found[engine]]
    return shown(name, line_chart(name, Axes(axis, unit), series), table(("engine", axis, unit), rows))


def _latencies(points: Sequence[Loaded]) -> list[Markup]:
    """Percentiles, a chart for each load and latency."""
    return [
        chart
        for name in dict.fromkeys(it.name for it in points)
        for metric, title in LATENCIES.items()
        if (
            chart := percentile_figure(
                f"{title}, {name}", [(it.engine, it.value.at(metric)) for it in points if it.name == name]
            )
        )
    ]
