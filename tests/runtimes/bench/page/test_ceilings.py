"""Shares of ceilings, and steps that grow."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtimes.charts.reading import at, axis, having, marker

from .samples import CASES, benchmark, charts, page, parsed, section, spread


def lengths(chart: Any) -> list[float]:
    x = axis(chart, "x")
    return [x(start + width) for start, width in (at(it, "x", "width") for it in having(chart, "rect", "bar"))]


def test_the_bandwidth_alone() -> None:
    document = benchmark()
    found = charts(section(parsed(page(document)), "roofline"))
    assert all(title.startswith("Share in decode") for title in found)
    chart = found["Share in decode, prompt 128, 64 new tokens"]
    assert lengths(chart) == pytest.approx([50, 51], rel=2e-3)
    assert [it.text for it in having(chart, "text", "value")] == ["50% of memory", "51% of memory"]


def test_a_roofline_takes_its_place() -> None:
    shares = [
        {"label": "int4", "case": CASES[0], "phase": phase, "share": share, "bound": bound}
        for phase, share, bound in (("decode", 0.8, "memory"), ("prefill", 1.3, "arithmetic"), ("other", 0.1, "x"))
    ]
    ceilings = {"reads": [{"bytes_per_second": spread(40e9)}, {"bytes_per_second": spread(45e9)}]}
    found = section(parsed(page(benchmark(roofline={"shares": shares}, ceilings=ceilings))), "roofline")
    case = "prompt 128, 64 new tokens"
    assert list(charts(found)) == [f"Share in decode, {case}", f"Share in prefill, {case}"]
    assert lengths(charts(found)[f"Share in prefill, {case}"]) == pytest.approx([130], rel=2e-3)
    assert found is not None
    assert "reads 45.0 GB/s" in "".join(found.itertext())


@pytest.mark.parametrize("name", ["curve", "contexts"])
def test_sweeps(name: str) -> None:
    points = [
        {"label": "int8", "tokens": tokens, "step_ms": spread(step)}
        for tokens, step in ((16, 9.0), (1, 4.0), (4, 5.0))
    ]
    document = benchmark(**{name: {"points": points, "remarks": ["int8: a step of 16 is slow"]}})
    found = section(parsed(page(document)), name)
    assert found is not None
    assert "int8: a step of 16 is slow" in "".join(found.itertext())
    ((_, chart),) = charts(found).items()
    x, y = axis(chart, "x", log=True), axis(chart, "y")
    places = [(x(px), y(py)) for px, py in map(marker, having(chart, "path", "mark"))]
    assert places == [pytest.approx(pair, rel=2e-3) for pair in ((1, 4), (4, 5), (16, 9))]
    assert section(parsed(page(benchmark())), name) is None
