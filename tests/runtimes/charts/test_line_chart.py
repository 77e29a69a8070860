"""Lines say what the data say."""

from __future__ import annotations

import itertools

import pytest

from llmc.runtimes.charts.line_chart import Axes, Point, Series, line_chart
from llmc.runtimes.charts.palette import Tone

from .reading import at, axis, having, marker, parse, title

FAST = Series(Tone(1), "fast <engine>", "fast", (Point(1, 220, 210, 240), Point(4, 480), Point(16, 612, 600, 650)))
SLOW = Series(Tone(2), "slow", "slow", (Point(1, 130, 120, 135), Point(16, 200)))


@pytest.mark.parametrize("log", [False, True])
def test_the_points_are_the_data(log: bool) -> None:
    tree = parse(line_chart("Decode", Axes("rows", "tok/s", log), [FAST, SLOW]))
    x, y = axis(tree, "x", log=True), axis(tree, "y", log=log)
    places = [marker(it) for it in having(tree, "path", "mark")]
    expected = [(p.x, p.y) for series in (FAST, SLOW) for p in series.points]
    assert [(x(px), y(py)) for px, py in places] == [pytest.approx(pair, rel=1e-3) for pair in expected]
    ranges = [at(it, "y1", "y2") for it in having(tree, "line", "range")]
    assert [(y(low), y(high)) for low, high in ranges] == [
        pytest.approx(pair, rel=1e-3) for pair in ((210, 240), (600, 650), (120, 135))
    ]
    lines = [
        [tuple(map(float, it.split(","))) for it in line.get("points", "").split()] for line in tree.iter("polyline")
    ]
    assert lines == [places[:3], places[3:]]


def test_x_is_written_where_something_was_measured() -> None:
    tree = parse(line_chart("Decode", Axes("rows", "tok/s"), [FAST, SLOW]))
    assert [it.text for it in having(tree, "text", "x-tick")] == ["1", "4", "16"]
    assert {it.text for it in having(tree, "text", "axis")} == {"rows", "tok/s"}
    assert tree.get("aria-label") == "Decode"


def test_pointing_at_a_mark_tells_its_figures() -> None:
    tree = parse(line_chart("Decode", Axes("rows", "tok/s"), [FAST, SLOW]))
    told = [title(it) for it in having(tree, "path", "mark")]
    assert told[0] == "fast <engine>, rows 1: 220 (210 to 240) tok/s"
    assert told[-1] == "slow, rows 16: 200 tok/s"


def test_names_at_the_ends_do_not_meet() -> None:
    series = [
        Series(Tone(i), f"engine {i}", f"e{i}", (Point(1, 100 + i / 10), Point(2, 50 + i / 10))) for i in range(1, 8)
    ]
    tree = parse(line_chart("Close", Axes("rows", "tok/s"), series))
    heights = sorted(at(it, "y")[0] for it in having(tree, "text", "name"))
    assert all(second - first >= 13.9 for first, second in itertools.pairwise(heights))
    assert heights[0] >= 30
    assert heights[-1] <= 215


def test_one_point_is_no_line() -> None:
    alone = Series(Tone(1), "a", "a", (Point(128, 5),))
    tree = parse(line_chart("Alone", Axes("tokens", "tok/s"), [alone]))
    assert not list(tree.iter("polyline"))
    assert len(having(tree, "path", "mark")) == 1
