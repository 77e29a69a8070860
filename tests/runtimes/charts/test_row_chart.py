"""Bars and points say what the data say."""

from __future__ import annotations

import pytest

from llmc.runtimes.charts.palette import Tone
from llmc.runtimes.charts.row_chart import Row, row_chart

from .reading import at, axis, having, marker, parse, title

ROWS = [
    Row(Tone(1), "int4", "228 tok/s", 228.0, 222.0, 244.0, dots=(225.0, 240.0)),
    Row(Tone(2), "other", "137 tok/s", 137.0),
]


def test_bars_are_as_long_as_their_values() -> None:
    tree = parse(row_chart("Decode", "tok/s", ROWS))
    x = axis(tree, "x")
    ends = [at(it, "x", "width") for it in having(tree, "rect", "bar")]
    assert [x(start + width) for start, width in ends] == [pytest.approx(228, rel=1e-3), pytest.approx(137, rel=1e-3)]
    assert [x(start) for start, _ in ends] == [pytest.approx(0, abs=0.5)] * 2
    errors = [at(it, "x1", "x2") for it in having(tree, "line", "error")]
    assert [(x(a), x(b)) for a, b in errors] == [
        pytest.approx(pair, rel=1e-3) for pair in ((222, 244), (222, 222), (244, 244))
    ]
    assert [x(at(it, "cx")[0]) for it in having(tree, "circle", "dot")] == [
        pytest.approx(225, rel=1e-3),
        pytest.approx(240, rel=1e-3),
    ]
    assert title(having(tree, "rect", "bar")[0]) == "int4: 228 tok/s"


@pytest.mark.parametrize("log", [False, True])
def test_points(log: bool) -> None:
    rows = [Row(Tone(3), "a", "1.7", 1.7, 0.9, 2.4, notches=(2.0, 2.2))]
    tree = parse(row_chart("Ratio", "ratio", rows, kind="points", log=log, reference=1.0))
    x = axis(tree, "x", log=log)
    assert x(marker(having(tree, "path", "mark")[0])[0]) == pytest.approx(1.7, rel=1e-3)
    (line,) = [at(it, "x1", "x2") for it in having(tree, "line", "range")]
    assert (x(line[0]), x(line[1])) == pytest.approx((0.9, 2.4), rel=1e-3)
    assert [x(at(it, "x1")[0]) for it in having(tree, "line", "notch")] == pytest.approx([2.0, 2.2], rel=1e-3)
    assert x(at(having(tree, "line", "reference")[0], "x1")[0]) == pytest.approx(1.0, rel=1e-3)


def test_long_names_get_a_line_of_their_own() -> None:
    short = parse(row_chart("t", "x", [Row(Tone(1), "name", "1", 1.0)]))
    name = "llamacpp-python Q4_K_M, no flash attention"
    long = parse(row_chart("t", "x", [Row(Tone(1), name, "877 tok/s (853 to 932)", 877.0)]))

    def lines(tree: object) -> list[float]:
        return [at(having(tree, "text", css)[0], "y")[0] for css in ("name", "value")]  # type: ignore[arg-type]

    assert lines(short) == [17, 17]
    assert lines(long) == [17, 32]
    assert having(long, "text", "name")[0].text == name


def test_a_name_longer_than_a_line_is_cut_and_told_whole() -> None:
    name = "x" * 200
    (text,) = having(parse(row_chart("t", "x", [Row(Tone(1), name, "1", 1.0)])), "text", "name")
    assert (text.text or "").endswith("…")
    assert title(text) == name
