"""Energy and cost, where they are known."""

from __future__ import annotations

import pytest

from tests.runtimes.charts.reading import at, axis, having

from .samples import CASES, benchmark, charts, page, parsed, section, spread

CASE = "prompt 128, 64 new tokens"


def test_energy() -> None:
    document = benchmark()
    document["results"][0] |= {"joules_per_token": spread(0.3), "power_w": spread(60.0)}
    found = charts(section(parsed(page(document)), "energy"))
    assert list(found) == [f"Energy, {CASE}", f"Average power, {CASE}"]
    chart = found[f"Energy, {CASE}"]
    x = axis(chart, "x")
    (bar,) = [at(it, "x", "width") for it in having(chart, "rect", "bar")]
    assert x(sum(bar)) == pytest.approx(0.3, rel=2e-3)


def test_what_was_not_measured_is_absent() -> None:
    tree = parsed(page(benchmark()))
    assert section(tree, "energy") is None
    assert section(tree, "cost") is None


def test_cost() -> None:
    cost = {"label": "int8", "case": CASES[0], "per_million_in": 0.12, "per_million_out": 1.3, "per_request": 0.0004}
    price = {"text": "0.2 EUR/h", "currency": "EUR"}
    found = section(parsed(page(benchmark(costs=[cost], price=price))), "cost")
    assert found is not None
    assert "0.2 EUR/h" in "".join(found.itertext())
    texts = [it.text for chart in charts(found).values() for it in having(chart, "text", "value")]
    assert texts == ["0.12 EUR", "1.30 EUR", "0.4 EUR"]
