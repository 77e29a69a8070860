"""Lines over an axis of a few measured places: throughput against batch or context.

In: series of points with their ranges. Out: an SVG, its lines named where they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtimes.charts.figures import figure, text_width, tick_text
from llmc.runtimes.charts.frame import FONT, WIDTH, Plane, drawing, label, left_margin, spread_apart
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.scales import linear_scale, log_scale

HEIGHT, TOP, BOTTOM = 250.0, 30.0, 206.0
LINE = 14.0
"""Between two names at the end of lines."""


@dataclass(frozen=True)
class Point:
    """A measured place; ``low`` and ``high`` are the least and most of its runs."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line: its tone, its whole name, what is written at its end, its points in the order of x."""

    tone: Tone
    name: str
    short: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axes:
    """Names of the axes with their units, and whether y shows ratios as distances; x always does."""

    x: str
    y: str
    log_y: bool = False


def line_chart(title: str, axes: Axes, series: Sequence[Series]) -> Markup:
    """The chart; every series has a point, and each value is positive where its axis is logarithmic."""
    points = [point for each in series for point in each.points]
    heights = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    places = sorted({point.x for point in points})
    x = log_scale(places, ticks=places)
    y = log_scale(heights) if axes.log_y else linear_scale(heights)
    room = max(text_width(each.short, FONT) for each in series)
    plane = Plane.within(x, y, top=TOP, bottom=BOTTOM, left=left_margin(y), right=WIDTH - room - 12)
    ends = spread_apart([plane.y(each.points[-1].y) for each in series], LINE, TOP, BOTTOM)
    lines = [_line(plane, axes, each) for each in series]
    names = [_name(plane, each, end) for each, end in zip(series, ends, strict=True)]
    return drawing(title, HEIGHT, [plane.grid(axes.x, axes.y), *lines, *names])


def _line(plane: Plane, axes: Axes, series: Series) -> Markup:
    path = " ".join(f"{plane.x(point.x):.2f},{plane.y(point.y):.2f}" for point in series.points)
    line = element("polyline", class_=f"line {series.tone.css}", points=path) if len(series.points) > 1 else None
    ranges = [
        element(
            "line",
            class_=f"range {series.tone.css}",
            x1=plane.x(point.x),
            x2=plane.x(point.x),
            y1=plane.y(point.low),
            y2=plane.y(point.high),
        )
        for point in series.points
        if point.low is not None and point.high is not None
    ]
    marks = [
        series.tone.marker(plane.x(point.x), plane.y(point.y), f"{series.name}, {_told(point, axes)}")
        for point in series.points
    ]
    return join([line, *ranges, *marks])


def _told(point: Point, axes: Axes) -> str:
    spread = "" if point.low is None or point.high is None else f" ({figure(point.low)} to {figure(point.high)})"
    return f"{axes.x} {tick_text(point.x)}: {figure(point.y)}{spread} {axes.y}"


def _name(plane: Plane, series: Series, y: float) -> Markup:
    """The name beside the last point; a thin line leads there where it had to move."""
    last = series.points[-1]
    x, right = plane.x(last.x) + 7, plane.x.end + 10
    leader = element("line", class_=f"leader {series.tone.css}", x1=x, y1=plane.y(last.y), x2=right - 2, y2=y)
    moved = abs(y - plane.y(last.y)) > 3 or right - x > 16
    return join([leader if moved else None, label(right, y + 4, series.short, "name")])
