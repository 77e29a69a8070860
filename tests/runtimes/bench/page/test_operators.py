"""Time by kind of operator."""

from __future__ import annotations

from tests.runtimes.charts.reading import having, title

from .samples import CASES, benchmark, charts, page, parsed, rows, section

CASE = "prompt 128, 64 new tokens"


def operators() -> dict[str, object]:
    times = (
        ("int4", "decode", {"products": 0.003, "attention": 0.001}),
        ("int8", "decode", {"products": 0.006, "rest": 0.002}),
        ("int8", "prefill", {"products": 0.05}),
        ("int8", "other", {"products": 0.05}),
        ("nobody", "decode", {"products": 0.05}),
        ("int4", "prefill", {"products": 0, "rest": None}),
    )
    shares = [{"label": label, "case": CASES[0], "phase": phase, "kinds": kinds} for label, phase, kinds in times]
    return {"shares": shares, "remarks": ["operators of x are not known"]}


def test_parts_are_the_documents() -> None:
    found = section(parsed(page(benchmark(operators=operators()))), "operators")
    assert list(charts(found)) == [f"Operators in decode, {CASE}", f"Operators in prefill, {CASE}"]
    parts = having(charts(found)[f"Operators in decode, {CASE}"], "rect", "part")
    assert [title(it) for it in parts] == [
        "1 int4, products: 3.00 ms, 75%",
        "1 int4, attention: 1.00 ms, 25%",
        "2 int8, products: 6.00 ms, 75%",
        "2 int8, rest: 2.00 ms, 25%",
    ]
    assert found is not None
    assert rows(found) == [["1 int4", "3.00", "1.00", ""], ["2 int8", "6.00", "", "2.00"]]


def test_a_kind_keeps_its_colour_and_a_key_names_it() -> None:
    found = section(parsed(page(benchmark(operators=operators()))), "operators")
    assert found is not None
    (key,) = [it for it in found.iter("ul") if it.get("class") == "key"]
    assert ["".join(it.itertext()) for it in key] == ["products", "attention", "rest"]
    products = [it.get("class") for it in having(found, "rect", "part") if ", products:" in title(it)]
    assert products == ["part t0"] * 3
    assert "operators of x are not known" in "".join(found.itertext())


def test_without_a_profile_there_is_no_section() -> None:
    assert section(parsed(page(benchmark())), "operators") is None
