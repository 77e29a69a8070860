"""What sections are made of."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from llmc.runtimes.bench.page.parts import MOST_OPEN, charts_section
from llmc.runtimes.charts.markup import element

from .samples import CASES, benchmark, charts, page, parsed, result, section


@pytest.mark.parametrize(("count", "folded"), [(1, 0), (MOST_OPEN, 0), (MOST_OPEN + 1, 1), (MOST_OPEN + 2, 2)])
def test_many_charts_are_behind_a_line_that_opens(count: int, folded: int) -> None:
    figures = [element("figure", str(number)) for number in range(count)]
    body = charts_section("here", "Here", ["a note"], figures).body
    assert body is not None
    tree = ElementTree.fromstring(f"<main>{body}</main>")
    assert [it.text for it in tree.iter("figure")] == [str(number) for number in range(count)]
    assert [it.text for it in tree.findall("details/div/figure")] == [str(n) for n in range(count)][count - folded :]
    words = [it.text for it in tree.findall("details/summary")]
    assert words == ([f"{folded} more {'chart' if folded == 1 else 'charts'}"] if folded else [])
    assert tree.findtext("p") == "a note"


def test_a_section_without_charts_says_what_adds_them() -> None:
    found = charts_section("here", "Here", ["a note"], [], "llmc bench")
    assert (found.body, found.wanted) == (None, "llmc bench")


def test_a_page_of_many_cases_opens_with_few_charts() -> None:
    document = benchmark()
    cases = [*CASES, *({"prompt": prompt, "gen": 64, "batch": 1} for prompt in range(1000, 1020))]
    document["results"] = [result(place, "int4", case) for place, case in enumerate(cases)]
    latency = section(parsed(page(document)), "latency")
    assert latency is not None
    assert len(charts(latency)) == 2 * len(cases)
    assert len(latency.findall("div/figure")) == MOST_OPEN
