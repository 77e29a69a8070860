"""Bubbles say what the data say."""

from __future__ import annotations

import itertools
import math

import pytest

from llmc.runtimes.charts.bubble_chart import LARGEST, SMALLEST, Bubble, bubble_chart, radius
from llmc.runtimes.charts.figures import text_width
from llmc.runtimes.charts.frame import FONT, WIDTH
from llmc.runtimes.charts.line_chart import Axes
from llmc.runtimes.charts.palette import Tone

from .reading import at, axis, having, parse, title

BUBBLES = [
    Bubble(Tone(1), "int4", "int4", 228.0, 0.045, 88e6, "228 tok/s"),
    Bubble(Tone(2), "Q4_0", "Q4_0", 168.0, 0.19, 92e6, "168 tok/s"),
    Bubble(Tone(3), "unknown", "unknown", 90.0, 0.06, 0.0, "90 tok/s"),
]


@pytest.mark.parametrize("log", [False, True])
def test_places_and_areas_are_the_data(log: bool) -> None:
    tree = parse(bubble_chart("Quality", Axes("tok/s", "KL", log), BUBBLES))
    x, y = axis(tree, "x"), axis(tree, "y", log=log)
    circles = {title(it).partition(":")[0]: at(it, "cx", "cy", "r") for it in having(tree, "circle", "bubble")}
    for bubble in BUBBLES:
        cx, cy, _ = circles[bubble.name]
        assert (x(cx), y(cy)) == pytest.approx((bubble.x, bubble.y), rel=2e-3)
    assert circles["int4"][2] ** 2 / circles["Q4_0"][2] ** 2 == pytest.approx(88 / 92, rel=2e-3)
    assert circles["unknown"][2] == SMALLEST
    assert title(having(tree, "circle", "bubble")[0]) == "Q4_0: 168 tok/s"


def test_radii() -> None:
    assert radius(10, 10) == LARGEST
    assert radius(5, 10) == pytest.approx(LARGEST / math.sqrt(2))
    assert radius(0, 10) == SMALLEST


def test_names_do_not_meet() -> None:
    bubbles = [Bubble(Tone(i), f"engine {i}", f"engine {i}", 200 + i, 0.05 + i / 1000, 1.0, "") for i in range(1, 6)]
    tree = parse(bubble_chart("Close", Axes("tok/s", "KL", True), bubbles))
    boxes = []
    for it in having(tree, "text", "name"):
        left, bottom = at(it, "x", "y")
        boxes.append((left, left + text_width(it.text or "", FONT), bottom - 12, bottom))
    assert len(boxes) == 5
    assert all(box[0] >= 0 and box[1] <= WIDTH for box in boxes)
    for one, two in itertools.combinations(boxes, 2):
        assert one[1] <= two[0] or two[1] <= one[0] or one[3] <= two[2] or two[3] <= one[2]
