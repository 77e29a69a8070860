"""Ratios with their intervals."""

from __future__ import annotations

import pytest

from tests.runtimes.charts.reading import at, axis, having, marker

from .samples import benchmark, charts, page, parsed, section

TITLE = "int4 / other, decode, prompt 128, 64 new tokens"


def test_the_interval_and_the_rounds() -> None:
    chart = charts(section(parsed(page(benchmark())), "ratios"))[TITLE]
    x = axis(chart, "x", log=True)
    assert x(marker(having(chart, "path", "mark")[0])[0]) == pytest.approx(1.2, rel=2e-3)
    (ends,) = [tuple(map(x, at(it, "x1", "x2"))) for it in having(chart, "line", "range")]
    assert ends == pytest.approx((1.05, 1.4), rel=2e-3)
    assert [x(at(it, "cx")[0]) for it in having(chart, "circle", "dot")] == pytest.approx([1.1, 1.2, 1.5], rel=2e-3)
    assert x(at(having(chart, "line", "reference")[0], "x1")[0]) == pytest.approx(1, rel=2e-3)


def test_what_the_line_means_is_said() -> None:
    document = benchmark()
    with_interval = section(parsed(page(document)), "ratios")
    assert with_interval is not None
    assert "95% bootstrap interval" in "".join(with_interval.itertext())
    document["comparisons"][0]["interval"] = None
    without = section(parsed(page(document)), "ratios")
    assert without is not None
    assert "least and most of the rounds" in "".join(without.itertext())
    x = axis(charts(without)[TITLE], "x", log=True)
    (ends,) = [tuple(map(x, at(it, "x1", "x2"))) for it in having(charts(without)[TITLE], "line", "range")]
    assert ends == pytest.approx((1.08, 1.44), rel=2e-3)


def test_an_interval_that_does_not_hold_the_median_is_not_believed() -> None:
    document = benchmark()
    document["comparisons"][0]["interval"] = {"low": 1.3, "high": 1.4, "confidence": 0.95}
    found = section(parsed(page(document)), "ratios")
    assert found is not None
    assert "bootstrap" not in "".join(found.itertext())


def test_a_fast_loss_is_marked_and_stands_last() -> None:
    document = benchmark()
    first = document["comparisons"][0] | {"standing": "worse"}
    second = first | {"denominator": "int4", "standing": "equal or better"}
    document["comparisons"] = [first, second]
    found = section(parsed(page(document)), "ratios")
    chart = charts(found)[TITLE]
    assert [it.text for it in having(chart, "text", "name")] == ["1 int4", "2 int8"]
    assert [(it.text or "").endswith("*") for it in having(chart, "text", "value")] == [False, True]
    assert found is not None
    assert "* The first loses more" in "".join(found.itertext())
    plain = section(parsed(page(benchmark())), "ratios")
    assert plain is not None
    assert "loses more" not in "".join(plain.itertext())


def test_the_loop_that_users_run_has_a_chart_of_its_own() -> None:
    document = benchmark()
    text = {name: value for name, value in document["comparisons"][0].items() if name != "case"}
    document["text_comparisons"] = [text | {"metric": "ttft"}]
    drawn = charts(section(parsed(page(document)), "ratios"))
    chart = drawn["int4 / other, ttft, text in, text out"]
    x = axis(chart, "x", log=True)
    assert x(marker(having(chart, "path", "mark")[0])[0]) == pytest.approx(1.2, rel=2e-3)
    assert len(drawn) == len(charts(section(parsed(page(benchmark())), "ratios"))) + 1
