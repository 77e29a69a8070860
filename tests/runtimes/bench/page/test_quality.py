"""Quality beside speed."""

from __future__ import annotations

import pytest

from tests.runtimes.charts.reading import at, axis, having, title

from .samples import benchmark, charts, evaluation, page, parsed, rows, section

TITLE = "Mean KL divergence and decode speed, prompt 128, 64 new tokens"


def test_bubbles_are_speed_divergence_and_size() -> None:
    document = benchmark()
    tree = parsed(page(document, evaluations=(evaluation(int4=0.05, int8=0.004),)))
    chart = charts(section(tree, "quality"))[TITLE]
    x, y = axis(chart, "x"), axis(chart, "y", log=True)
    found = {title(it).partition(":")[0]: at(it, "cx", "cy", "r") for it in having(chart, "circle", "bubble")}
    places = [(x(found[name][0]), y(found[name][1])) for name in ("int4", "int8")]
    assert places == [pytest.approx(pair, rel=5e-3) for pair in ((220, 0.05), (209, 0.004))]
    assert found["int4"][2] ** 2 / found["int8"][2] ** 2 == pytest.approx(90 / 140, rel=2e-3)


def test_an_engine_without_an_evaluation_is_not_shown() -> None:
    found = section(parsed(page(benchmark(), evaluations=(evaluation(int8=0.004),))), "quality")
    assert found is not None
    assert rows(found) == [["2 int8", "209", "0.004", "20.0", "140 MB"]]
    assert section(parsed(page(benchmark(), evaluations=(evaluation(other=0.1),))), "quality") is None


def test_a_path_goes_before_a_label_and_its_own_figures_before_both() -> None:
    document = benchmark()
    other = {"label": "x", "path": "out/int4", "mean_kl": 0.03, "ppl": 21.0}
    measured = evaluation(int4=0.05)
    measured["artifacts"].append(other)
    found = section(parsed(page(document, evaluations=(measured,))), "quality")
    assert found is not None
    assert rows(found)[0][2] == "0.03"
    document["subjects"][0]["quality"] = {"mean_kl": 0.02}
    found = section(parsed(page(document, evaluations=(measured,))), "quality")
    assert found is not None
    assert rows(found)[0][2] == "0.02"


def test_perplexity_where_no_divergence_is_known() -> None:
    document = benchmark()
    document["subjects"][0]["quality"] = {"perplexity": 21.5}
    found = charts(section(parsed(page(document)), "quality"))
    assert next(iter(found)).startswith("Perplexity and decode speed")
