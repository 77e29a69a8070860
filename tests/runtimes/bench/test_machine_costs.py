"""The same work on several machines: whose price, which order, which machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.bench.machine_costs import cost_table, costs_of, machine_costs, prices_of, with_price
from llmc.runtimes.bench.results import BenchReport
from llmc.runtimes.bench.token_cost import parse_price

from .reports import CASE, make_report

CHEAP, DEAR = parse_price("1/h"), parse_price("100/h")


def on_gpu(report: BenchReport) -> BenchReport:
    """The first subject says that it runs on a GPU."""
    first, second = report.subjects
    return replace(report, subjects=(replace(first, info={"details": {"device": "cuda:0"}}), second))


def test_by_medians_of_each_result() -> None:
    mine, other = costs_of(make_report(), CHEAP)
    assert (mine.label, mine.case, other.label) == ("mine", CASE, "other")
    assert mine.per_million_in == pytest.approx(1e6 / 3600 * 0.0125 / 36)
    assert mine.per_million_out == pytest.approx(1e6 / 3600 * 0.02 / 3)
    priced = with_price(make_report(), CHEAP)
    assert (priced.price, priced.costs) == (CHEAP, (mine, other))


def test_the_cheapest_comes_first_case_by_case() -> None:
    plain = make_report()
    longer = replace(plain.results[0], case=BenchCase(99, 5))
    rows = machine_costs([("a", plain), ("b", replace(plain, results=(*plain.results, longer)))], [DEAR, CHEAP])
    assert [(row.source, row.cost.label, row.cost.case.name) for row in rows] == [
        ("b", "mine", CASE.name),
        ("b", "other", CASE.name),
        ("a", "mine", CASE.name),
        ("a", "other", CASE.name),
        ("b", "mine", "pp99+tg5"),
    ]
    request = {row.cost.label: row.cost.per_request for row in rows if row.source == "b" and row.cost.case == CASE}
    assert [row.times for row in rows] == pytest.approx(
        [1, request["other"] / request["mine"], 100, 100 * request["other"] / request["mine"], 1]
    )


def test_one_price_is_for_all() -> None:
    rows = machine_costs([("a", make_report()), ("b", make_report())], [CHEAP])
    assert {row.price for row in rows} == {CHEAP}
    with pytest.raises(UsageError, match="3 prices for 2 reports"):
        machine_costs([("a", make_report()), ("b", make_report())], [CHEAP] * 3)


def test_the_machine_is_what_an_engine_ran_on() -> None:
    rows = machine_costs([("a", on_gpu(make_report()))], [CHEAP])
    assert [row.machine for row in rows] == ["NVIDIA Fake", "Some CPU, 6 cores"]


def test_prices_of_the_command_line_else_of_the_reports() -> None:
    plain, priced = make_report(), with_price(make_report(), DEAR)
    assert prices_of([("a", plain)], ["1/h"]) == [CHEAP]
    assert prices_of([("a", priced), ("b", priced)], []) == [DEAR, DEAR]
    with pytest.raises(UsageError, match="b was made without a price"):
        prices_of([("a", priced), ("b", plain)], [])


def test_the_table() -> None:
    table = cost_table(machine_costs([("a.json", make_report())], [parse_price("3600 EUR/h")]))
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["engine"] == ["mine", "other"]
    assert cells["price"] == ["3600 EUR/h"] * 2
    assert cells["1M in"] == ["347", "13,889"]
    assert cells["1M out"] == ["6,667", "26,667"]
    assert cells["1000 requests"] == ["30.8", "273"]
    assert cells["times"] == ["1.00", "8.86"]
