"""Charts of latency show the document's numbers."""

from __future__ import annotations

import pytest

from tests.runtimes.charts.reading import at, axis, having, marker

from .samples import CASES, benchmark, charts, page, parsed, section

CASE = "prompt 128, 64 new tokens"


def test_first_tokens() -> None:
    document = benchmark()
    chart = charts(section(parsed(page(document)), "latency"))[f"TTFT, {CASE}"]
    x = axis(chart, "x")
    found = [x(marker(it)[0]) for it in having(chart, "path", "mark")]
    spreads = [it["ttft_s"] for it in document["results"][:2]]
    assert found == pytest.approx([1e3 * it["median"] for it in spreads], rel=2e-3)
    ends = [tuple(map(x, at(it, "x1", "x2"))) for it in having(chart, "line", "range")]
    expected = [(1e3 * it["minimum"], 1e3 * it["maximum"]) for it in spreads]
    assert ends == [pytest.approx(pair, rel=2e-3) for pair in expected]


def test_gaps_between_tokens() -> None:
    document = benchmark()
    chart = charts(section(parsed(page(document)), "latency"))[f"ITL, {CASE}"]
    x = axis(chart, "x")
    first = document["results"][0]["itl_ms"]
    assert x(marker(having(chart, "path", "mark")[0])[0]) == pytest.approx(first["p50"], rel=2e-3)
    notches = [x(at(it, "x1")[0]) for it in having(chart, "line", "notch")[:3]]
    assert notches == pytest.approx([first[name] for name in ("p90", "p95", "p99")], rel=2e-3)
    assert next(it.text for it in having(chart, "text", "value")) == "p50 4.00 · p99 6.00 ms"


def test_requests() -> None:
    values = {"p50": 10.0, "p90": 12.0, "p95": 14.0, "p99": 20.0}
    generation = {"label": "int8", "case": CASES[0], "ttft_ms": values, "tpot_ms": values, "itl_ms": {"p50": 1.0}}
    tree = parsed(page(benchmark(generations=[generation])))
    assert list(charts(section(tree, "requests"))) == [f"TTFT, {CASE}", f"TPOT, {CASE}"]
    assert section(parsed(page(benchmark())), "requests") is None


def test_text_to_text() -> None:
    values = {"p50": 10.0, "p90": 12.0, "p95": 14.0, "p99": 20.0}
    results = [{"label": "int8", "ttft_ms": values, "tpot_ms": None}, {"label": "nobody", "itl_ms": values}]
    tree = parsed(page(benchmark(text_results=results)))
    ((title, chart),) = charts(section(tree, "text")).items()
    assert title == "TTFT, from text to text"
    x = axis(chart, "x")
    assert x(marker(having(chart, "path", "mark")[0])[0]) == pytest.approx(10, rel=2e-3)
    assert section(parsed(page(benchmark())), "text") is None
