"""One row for each thing: bars from zero, or points with their ranges.

In: rows. Out: an SVG. A row's name and figure stand above its mark, the figure on a line of its own where some name
is too long for both::

    int4                                228 tok/s (222 to 244)
    ████████████████████████├─┤
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmc.runtimes.charts.figures import fitted, text_width, tick_text
from llmc.runtimes.charts.frame import FONT, SMALL, WIDTH, drawing, label
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.scales import Scale, linear_scale, log_scale

PITCH, LINE, TOP, FOOT = 42.0, 15.0, 4.0, 40.0
SIDE = 8.0
"""Left and right of the marks."""


@dataclass(frozen=True)
class Row:
    """One thing.

    Attributes:
        name, text: What stands above the mark at the left and at the right.
        value: Of the bar or the point.
        low, high: Ends of the range, where there is one.
        notches: Values between, each a short line across the range; without them its ends have such lines.
        dots: Single samples.
    """

    tone: Tone
    name: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    notches: tuple[float, ...] = ()
    dots: tuple[float, ...] = ()

    @property
    def values(self) -> list[float]:
        """All that the scale has to hold."""
        ends = [end for end in (self.low, self.high) if end is not None]
        return [self.value, *ends, *self.notches, *self.dots]


def row_chart(
    title: str,
    axis: str,
    rows: Sequence[Row],
    *,
    kind: Literal["bars", "points"] = "bars",
    log: bool = False,
    reference: float | None = None,
) -> Markup:
    """The chart.

    Args:
        title: For those who hear it.
        axis: Name of the values' axis, with its unit.
        rows: At least one.
        kind: Bars begin at zero, so they are linear.
        log: Whether equal ratios have equal distances.
        reference: A value with a line through all rows, as 1 for ratios.
    """
    values = [value for row in rows for value in row.values] + ([] if reference is None else [reference])
    scale = log_scale(values) if log else linear_scale(values)
    scale = scale.between(SIDE, WIDTH - SIDE)
    line = 0.0 if all(text_width(row.name + row.text, FONT) + 12 <= WIDTH for row in rows) else LINE
    pitch = PITCH + line
    bottom = TOP + pitch * len(rows)
    marks = [_row(row, scale, TOP + pitch * i, line, kind) for i, row in enumerate(rows)]
    across = Markup("")
    if reference is not None:
        at = scale(reference)
        across = element("line", class_="reference", x1=at, x2=at, y1=TOP, y2=bottom)
    return drawing(title, bottom + FOOT, [_axis(scale, axis, bottom), across, *marks])


def _axis(scale: Scale, name: str, bottom: float) -> Markup:
    parts, border = [], -1.0
    for value in scale.ticks:
        text = tick_text(value)
        half = text_width(text, SMALL) / 2
        at = scale(value)
        parts.append(element("line", class_="grid", x1=at, x2=at, y1=TOP, y2=bottom))
        # At the ends the text moves inwards, so that the drawing does not cut it.
        middle = min(max(at, half), WIDTH - half)
        if middle - half >= border:
            parts.append(label(middle, bottom + 16, text, "x-tick", anchor="middle"))
            border = middle + half + 6
    return join([*parts, label(WIDTH, bottom + 33, name, "axis", anchor="end")])


def _row(row: Row, scale: Scale, top: float, line: float, kind: str) -> Markup:
    room = WIDTH if line else WIDTH - text_width(row.text, FONT) - 12
    told = f"{row.name}: {row.text}"
    name = label(0, top + 13, fitted(row.name, room, FONT), "name", title=row.name)
    text = label(0 if line else WIDTH, top + 13 + line, row.text, "value", anchor=None if line else "end")
    parts = [name, text]
    y = top + line + 25
    if kind == "bars":
        width = max(scale(row.value) - scale.start, 0.5)
        css, hint = f"bar {row.tone.css}", element("title", told)
        parts.append(element("rect", hint, class_=css, x=scale.start, y=y - 6, width=width, height=11))
    parts += _range(row, scale, y, kind)
    parts += [element("circle", class_=f"dot {row.tone.css}", cx=scale(value), cy=y, r=2) for value in row.dots]
    if kind == "points":
        parts.append(row.tone.marker(scale(row.value), y, told))
    return join(parts)


def _range(row: Row, scale: Scale, y: float, kind: str) -> list[Markup]:
    """The line from the least to the most, its ends, and what is marked between."""
    if row.low is None or row.high is None:
        return []
    points = (f"range {row.tone.css}", f"notch {row.tone.css}")
    # On a bar the range has a border, since some bars are as dark as it is.
    styles = (("halo",) * 2, ("error",) * 2) if kind == "bars" else (points,)
    parts = []
    for across, upright in styles:
        parts.append(element("line", class_=across, x1=scale(row.low), x2=scale(row.high), y1=y, y2=y))
        places = map(scale, row.notches or (row.low, row.high))
        parts += [element("line", class_=upright, x1=x, x2=x, y1=y - 4, y2=y + 4) for x in places]
    return parts
