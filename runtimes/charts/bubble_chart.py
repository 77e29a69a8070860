"""Points with an area: quality against speed, and how large each thing is.

In: bubbles. Out: an SVG. Areas are proportional to sizes; names stand where they cover neither a bubble nor a name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtimes.charts.figures import text_width
from llmc.runtimes.charts.frame import FONT, WIDTH, Plane, drawing, label, left_margin
from llmc.runtimes.charts.line_chart import Axes
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.scales import linear_scale, log_scale

HEIGHT, TOP, BOTTOM = 300.0, 30.0, 256.0
LARGEST, SMALLEST = 22.0, 3.0
"""Radii; the smallest is also that of a thing whose size is not known."""

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Bubble:
    """One thing: place, size (0: not known), whole name, what is written beside it, its figures in words."""

    tone: Tone
    name: str
    short: str
    x: float
    y: float
    size: float
    told: str


def bubble_chart(title: str, axes: Axes, bubbles: Sequence[Bubble]) -> Markup:
    """The chart; y is positive where its axis is logarithmic."""
    x = linear_scale([bubble.x for bubble in bubbles], most=5)
    heights = [bubble.y for bubble in bubbles]
    y = log_scale(heights, free=0.2) if axes.log_y else linear_scale(heights)
    plane = Plane.within(x, y, top=TOP, bottom=BOTTOM, left=left_margin(y), right=WIDTH - LARGEST)
    largest = max(bubble.size for bubble in bubbles) or 1.0
    places = [(plane.x(it.x), plane.y(it.y), radius(it.size, largest)) for it in bubbles]
    # Large ones first, so that small ones lie on them.
    order = sorted(range(len(bubbles)), key=lambda i: -places[i][2])
    circles = [_circle(bubbles[i], places[i]) for i in order]
    taken: list[_Box] = [(cx - r, cy - r, cx + r, cy + r) for cx, cy, r in places]
    names = []
    for bubble, place in zip(bubbles, places, strict=True):
        box = _free_box(place, text_width(bubble.short, FONT), taken)
        taken.append(box)
        names.append(label(box[0], box[3] - 3, bubble.short, "name"))
    return drawing(title, HEIGHT, [plane.grid(axes.x, axes.y), *circles, *names])


def radius(size: float, largest: float) -> float:
    """Of a bubble, so that areas are proportional to sizes as far as the smallest can be seen."""
    return max(LARGEST * math.sqrt(max(size, 0.0) / largest), SMALLEST)


def _circle(bubble: Bubble, place: tuple[float, float, float]) -> Markup:
    x, y, r = place
    told = element("title", f"{bubble.name}: {bubble.told}")
    circle = element("circle", told, class_=f"bubble {bubble.tone.css}", cx=x, cy=y, r=r)
    return join([circle, bubble.tone.marker(x, y)])


def _free_box(place: tuple[float, float, float], width: float, taken: Sequence[_Box]) -> _Box:
    """Where a name of one line fits: right, left, above, below, then further and further away."""
    x, y, r = place
    for away in (3.0, 16.0, 30.0, 44.0, 58.0):
        reach = r + away
        corners = (
            (x + reach, y - 7),
            (x - reach - width, y - 7),
            (x - width / 2, y - reach - 14),
            (x - width / 2, y + reach),
            (x + reach * 0.7, y - reach * 0.7 - 14),
            (x - reach * 0.7 - width, y + reach * 0.7),
        )
        for left, top in corners:
            box = (left, top, left + width, top + 15)
            inside = left >= 0 and box[2] <= WIDTH and top >= TOP - 8 and box[3] <= BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                return box
    left = min(max(x - width / 2, 0.0), WIDTH - width)
    return (left, y - 7, left + width, y + 8)


def _overlap(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
