"""What charts have in common: the drawing around them, axes, grid lines, texts.

In: scales and names. Out: parts of an SVG. A drawing is 360 units wide, which is what a phone shows at its size; a
wider screen puts drawings side by side.

      unit of y
    ┌───────────────┐
    │               │ names
    └───────────────┘
        unit of x
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmc.runtimes.charts.figures import text_width, tick_text
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.scales import Scale

WIDTH = 360.0
FONT, SMALL = 12.0, 11.0
"""Sizes of text; the stylesheet says the same."""


@dataclass(frozen=True)
class Plane:
    """The rectangle that data lie in, with its two scales at their positions."""

    x: Scale
    y: Scale

    @classmethod
    def within(cls, x: Scale, y: Scale, *, top: float, bottom: float, left: float, right: float) -> Plane:
        """The scales between these positions."""
        return cls(x.between(left, right), y.between(bottom, top))

    def grid(self, x_name: str, y_name: str) -> Markup:
        """Grid lines, ticks with their values, names of both axes."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        lines = [element("line", class_="grid", x1=left, x2=right, y1=self.y(v), y2=self.y(v)) for v in self.y.ticks]
        lines += [element("line", class_="grid", x1=self.x(v), x2=self.x(v), y1=top, y2=bottom) for v in self.x.ticks]
        texts = [label(left - 6, self.y(v) + 4, tick_text(v), "y-tick", anchor="end") for v in self.y.ticks]
        texts += [label(self.x(v), bottom + 16, tick_text(v), "x-tick", anchor="middle") for v in self.spread_ticks()]
        names = [label(0, top - 12, y_name, "axis"), label(right, bottom + 33, x_name, "axis", anchor="end")]
        return join([*lines, *texts, *names])

    def spread_ticks(self) -> list[float]:
        """Ticks of x whose texts have room beside each other, from the right: the largest value is always named."""
        chosen: list[float] = []
        border = float("inf")
        for value in reversed(self.x.ticks):
            half = text_width(tick_text(value), SMALL) / 2
            if self.x(value) + half + 4 <= border:
                chosen.append(value)
                border = self.x(value) - half
        return chosen[::-1]


def left_margin(y: Scale) -> float:
    """Room for the texts of y's ticks."""
    return 10 + max((text_width(tick_text(value), SMALL) for value in y.ticks), default=0.0)


def drawing(title: str, height: float, parts: Iterable[Markup]) -> Markup:
    """The whole SVG, which a reader of screens hears as one picture with this title."""
    view = f"0 0 {WIDTH:g} {height:g}"
    return element("svg", *parts, viewBox=view, role="img", aria_label=title, class_="chart")


def label(x: float, y: float, text: str, kind: str, *, anchor: str | None = None, title: str | None = None) -> Markup:
    """Text at a position; ``kind`` is its class."""
    told = None if title is None else element("title", title)
    return element("text", text, told, x=x, y=y, class_=kind, text_anchor=anchor)


def spread_apart(wanted: list[float], gap: float, top: float, bottom: float) -> list[float]:
    """Positions near the wanted ones, in their order, at least ``gap`` apart; between top and bottom if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    border = top - gap
    for i in order:
        placed[i] = border = max(wanted[i], border + gap)
    border = bottom + gap
    for i in reversed(order):
        placed[i] = border = min(placed[i], border - gap)
    return placed
