"""Charts read back: what a viewer would say that they show, from the drawing alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

Element = ElementTree.Element


def parse(svg: str) -> Element:
    """The drawing as a tree; a mistake in the markup is an error."""
    return ElementTree.fromstring(svg)


def having(tree: Element, tag: str, css: str) -> list[Element]:
    """Elements of a class, in the order of drawing."""
    return [it for it in tree.iter(tag) if css in it.get("class", "").split()]


def at(element: Element, *names: str) -> tuple[float, ...]:
    """Attributes as numbers."""
    return tuple(float(element.get(name, "nan")) for name in names)


def tick_value(text: str) -> float:
    """The number that stands at a tick."""
    number, _, unit = text.replace(",", "").partition(" ")
    return float(number) * {"": 1.0, "M": 1e6, "G": 1e9}[unit]


def axis(tree: Element, name: str, *, log: bool = False) -> Callable[[float], float]:
    """Value at a position of the axis ``x`` or ``y``, worked out from two ticks and their grid lines."""
    first, second = f"{name}1", f"{name}2"
    lines = [at(it, first)[0] for it in having(tree, "line", "grid") if it.get(first) == it.get(second)]
    ticks = []
    for it in having(tree, "text", f"{name}-tick"):
        position = at(it, name)[0] - (4 if name == "y" else 0)
        ticks.append((min(lines, key=lambda line: abs(line - position)), tick_value(it.text or "")))
    (p, low), (q, high) = min(ticks), max(ticks)
    assert p != q, "one tick is no scale"
    if log:
        return lambda where: math.exp(math.log(low) + (where - p) / (q - p) * (math.log(high) - math.log(low)))
    return lambda where: low + (where - p) / (q - p) * (high - low)


def marker(element: Element) -> tuple[float, float]:
    """Place of a series' marker."""
    x, y = re.findall(r"-?[\d.]+", element.get("transform", ""))
    return float(x), float(y)


def title(element: Element) -> str:
    """What is shown where somebody points at it."""
    return element.findtext("title") or ""
