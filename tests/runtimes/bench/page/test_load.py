"""Charts of load show the document's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.bench.document import report_text
from llmc.runtimes.bench.load.options import PointPlan
from tests.runtimes.bench.load.samples import exchange, failed, load_sample, point_of
from tests.runtimes.charts.reading import axis, having, marker

from .samples import benchmark, charts, page, parsed, section

LABELS = ("mine", "other")


def document(**options: Any) -> dict[str, Any]:
    """Two engines with 1, 2 and 4 users, the second one of them twice as slow."""
    points = [
        point_of(
            *(exchange(at, at + 0.1 * slow * users, at + 0.2 * slow * users) for at in range(7)),
            exchange(7, 7 + 0.3 * slow * users, 7 + 0.4 * slow * users),
            failed(0.0, "HTTP 500: no", 1.0),
            plan=PointPlan(users=users),
            label=label,
        )
        for slow, label in enumerate(LABELS, 1)
        for users in (1, 2, 4)
    ]
    report: dict[str, Any] = json.loads(report_text(load_sample(*points, **options)))
    return report


def test_latencies_against_users() -> None:
    drawn = charts(section(parsed(page(document())), "load"))
    assert "Goodput, by users" not in drawn, "there are no limits"
    chart = drawn["TTFT, median, by users"]
    x, y = axis(chart, "x"), axis(chart, "y")
    places = [marker(it) for it in having(chart, "path", "mark")]
    assert [round(x(place[0])) for place in places] == [1, 2, 4, 1, 2, 4]
    assert [y(place[1]) for place in places] == pytest.approx([100, 200, 400, 200, 400, 800], rel=0.03)


def test_the_99th_percentile_is_drawn_as_such() -> None:
    chart = charts(section(parsed(page(document())), "load"))["TTFT, 99 % of requests, by users"]
    y = axis(chart, "y")
    assert y(marker(having(chart, "path", "mark")[0])[1]) == pytest.approx(286, rel=0.03)


def test_every_load_stands_in_the_table_with_what_failed() -> None:
    text = "".join(section(parsed(page(document())), "load").itertext())
    assert text.count("1 of 9") == 6
    assert "4 users" in text


def test_distributions_of_each_load() -> None:
    drawn = charts(section(parsed(page(document())), "load-latency"))
    assert set(drawn) == {
        f"{name}, {load}"
        for name in ("TTFT", "TPOT", "ITL", "End to end")
        for load in ("1 user", "2 users", "4 users")
    }
    chart = drawn["End to end, 2 users"]
    x = axis(chart, "x")
    assert [x(marker(it)[0]) for it in having(chart, "path", "mark")] == pytest.approx([400, 800], rel=0.02)


def test_a_single_load_has_no_lines() -> None:
    value = document()
    value["load"]["points"] = value["load"]["points"][:1]
    tree = parsed(page(value))
    assert charts(section(tree, "load")) == {}
    assert section(tree, "load-latency") is not None


def test_the_method_is_the_loads() -> None:
    text = "".join(section(parsed(page(document(seed=7))), "measured").itertext())
    assert "requests under load, prompts of 128 and answers of 64 tokens, 4 at a time, seed 7" in text
    assert "rounds" not in text


def test_other_reports_have_no_such_section(tmp_path: Path) -> None:
    tree = parsed(page(benchmark()))
    assert section(tree, "load") is None
    assert "llmc load ENGINE" in "".join(tree.itertext())
