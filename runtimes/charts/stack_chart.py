"""Bars that are made of parts: where the time goes.

In: rows of parts, the same kinds in each. Out: an SVG; a part that is wide enough has its name or share in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmc.runtimes.charts.figures import figure, fitted, text_width
from llmc.runtimes.charts.frame import FONT, SMALL, WIDTH, drawing, label
from llmc.runtimes.charts.markup import Markup, element, join
from llmc.runtimes.charts.palette import Tone

PITCH, TOP, BAR = 44.0, 4.0, 20.0


@dataclass(frozen=True)
class Stack:
    """One bar: its name, and the size of each kind that it has, in the order in which they are drawn."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.parts.values())


def stack_chart(title: str, unit: str, stacks: Sequence[Stack], tones: Mapping[str, Tone]) -> Markup:
    """The chart; the longest bar has the whole width, and each total stands above its bar in ``unit``."""
    longest = max(stack.total for stack in stacks) or 1.0
    bars = [_stack(stack, TOP + PITCH * i, WIDTH / longest, unit, tones) for i, stack in enumerate(stacks)]
    return drawing(title, TOP + PITCH * len(stacks), bars)


def _stack(stack: Stack, top: float, scale: float, unit: str, tones: Mapping[str, Tone]) -> Markup:
    total = f"{figure(stack.total)} {unit}"
    room = WIDTH - text_width(total, FONT) - 12
    parts = [
        label(0, top + 13, fitted(stack.name, room, FONT), "value", title=stack.name),
        label(WIDTH, top + 13, total, "value", anchor="end"),
    ]
    x = 0.0
    for kind, size in stack.parts.items():
        width = size * scale
        share = size / stack.total if stack.total else 0.0
        told = element("title", f"{stack.name}, {kind}: {figure(size)} {unit}, {share:.0%}")
        css = f"part {tones[kind].css}"
        parts.append(element("rect", told, class_=css, x=x, y=top + 18, width=width, height=BAR))
        text = next((it for it in (f"{kind} {share:.0%}", f"{share:.0%}") if text_width(it, SMALL) + 6 <= width), "")
        if text:
            parts.append(label(x + width / 2, top + 18 + BAR - 6, text, f"inside {tones[kind].css}", anchor="middle"))
        x += width
    return join(parts)
