"""Charts of throughput show the document's numbers."""

from __future__ import annotations

import pytest

from tests.runtimes.charts.reading import at, axis, having, marker

from .samples import CASES, benchmark, charts, page, parsed, rows, section

RATES = {"Decode": "decode_tokens_per_s", "Prefill": "prefill_tokens_per_s"}


def figures(document: dict[str, object], name: str, **case: int) -> list[tuple[int, float]]:
    """Batch or prompt and median, in the order in which a chart draws them: engine by engine."""
    results: list[dict[str, object]] = document["results"]  # type: ignore[assignment]
    found = []
    for label in ("int4", "int8"):
        for it in results:
            own: dict[str, int] = it["case"]  # type: ignore[assignment]
            if it["label"] == label and all(own[key] == value for key, value in case.items()):
                other = "batch" if "prompt" in case else "prompt"
                found.append((own[other], it[name]["median"]))  # type: ignore[index]
    return found


@pytest.mark.parametrize(("metric", "name"), RATES.items())
@pytest.mark.parametrize("case", CASES[:3])
def test_bars(metric: str, name: str, case: dict[str, int]) -> None:
    document = benchmark()
    rows_ = "" if case["batch"] == 1 else f", {case['batch']} rows"
    found = charts(section(parsed(page(document)), "throughput"))
    chart = found[f"{metric}, prompt {case['prompt']}, 64 new tokens{rows_}"]
    x = axis(chart, "x")
    bars = [at(it, "x", "width") for it in having(chart, "rect", "bar")]
    expected = [it[name]["median"] for it in document["results"] if it["case"] == case]
    assert [x(start + width) for start, width in bars] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("metric", "name"), RATES.items())
def test_lines_over_batches(metric: str, name: str) -> None:
    document = benchmark()
    chart = charts(section(parsed(page(document)), "batch"))[f"{metric} by rows, prompt 512, 64 new tokens"]
    x, y = axis(chart, "x", log=True), axis(chart, "y")
    places = [marker(it) for it in having(chart, "path", "mark")]
    expected = figures(document, name, prompt=512)
    assert [(x(px), y(py)) for px, py in places] == [pytest.approx(pair, rel=2e-3) for pair in expected]


@pytest.mark.parametrize(("metric", "name"), RATES.items())
def test_lines_over_contexts(metric: str, name: str) -> None:
    document = benchmark()
    chart = charts(section(parsed(page(document)), "context"))[f"{metric} by prompt, 64 new tokens, 4 rows"]
    x, y = axis(chart, "x", log=True), axis(chart, "y")
    places = [marker(it) for it in having(chart, "path", "mark")]
    expected = figures(document, name, batch=4)
    assert [(x(px), y(py)) for px, py in places] == [pytest.approx(pair, rel=2e-3) for pair in expected]


def test_the_table_says_the_same() -> None:
    found = section(parsed(page(benchmark())), "throughput")
    assert found is not None
    assert rows(found) == [["1 int4", "220", "198", "264"], ["2 int8", "209", "188", "251"]]


def test_one_batch_is_no_line() -> None:
    document = benchmark()
    document["results"] = [it for it in document["results"] if it["case"]["batch"] == 1]
    tree = parsed(page(document))
    assert section(tree, "batch") is None
    assert section(tree, "context") is not None


def test_long_names_become_numbers_with_a_key() -> None:
    document = benchmark()
    name = "another runtime, its fastest variant"
    for it in (*document["subjects"], *document["results"]):
        it["label"] = it["label"].replace("int8", name)
    found = section(parsed(page(document)), "batch")
    assert found is not None
    (key,) = [it for it in found.iter("ul") if it.get("class") == "key"]
    assert ["".join(it.itertext()) for it in key] == ["1int4", f"2{name}"]
    (first, *_) = charts(found).values()
    assert [it.text for it in having(first, "text", "name")] == ["1", "2"]
