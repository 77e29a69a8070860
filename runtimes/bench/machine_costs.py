"""What the same work costs on several machines: reports of a benchmark beside each other.

In: reports with the names of their files, and a price for each. Out: :class:`MachineCost` rows, a case's cheapest
first, and their table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Column, Table

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.results import BenchReport
from llmc.runtimes.bench.token_cost import Price, TokenCost, amount_text, parse_price
from llmc.runtimes.machine.gpu import is_on_cuda


@dataclass(frozen=True)
class MachineCost:
    """One engine of one report.

    Attributes:
        source: Name of the report's file.
        machine: Processor, or GPU where the engine runs on one.
        times: What a request costs over the cheapest of its case.
    """

    source: str
    machine: str
    price: Price
    cost: TokenCost
    times: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "cost": {**asdict(self.cost), "case": self.cost.case.name}}


def prices_of(reports: Sequence[tuple[str, BenchReport]], texts: Sequence[str]) -> list[Price]:
    """The prices of a command line; without any, those that the reports were made with.

    Raises:
        UsageError: a text is no price, or there is none and a report has none.
    """
    if texts:
        return [parse_price(text) for text in texts]
    prices = [(name, report.price) for name, report in reports]
    for name, price in prices:
        if price is None:
            raise UsageError(f"{name} was made without a price; give one with --price 2.5/h")
    return [price for _, price in prices if price is not None]


def with_price(report: BenchReport, price: Price) -> BenchReport:
    """The report with what its tokens cost."""
    return replace(report, price=price, costs=costs_of(report, price))


def costs_of(report: BenchReport, price: Price) -> tuple[TokenCost, ...]:
    """What each result's tokens cost at a price."""
    return tuple(
        TokenCost.of(result.label, result.case, price, result.ttft_s.median, result.tpot_ms.median / 1e3)
        for result in report.results
    )


def machine_costs(reports: Sequence[tuple[str, BenchReport]], prices: Sequence[Price]) -> tuple[MachineCost, ...]:
    """Rows of all reports, case by case, the cheapest first.

    Args:
        reports: Names and reports.
        prices: One for all, or one for each.

    Raises:
        UsageError: another number of prices, or prices in several currencies.
    """
    if len(prices) not in (1, len(reports)):
        raise UsageError(f"{len(prices)} prices for {len(reports)} reports: give one for all, or one each")
    if len({price.currency for price in prices}) > 1:
        found = ", ".join(price.text for price in prices)
        raise UsageError(f"prices are compared in one currency, got {found}")
    each = list(prices) * (len(reports) if len(prices) == 1 else 1)
    rows = [
        MachineCost(name, _machine(report, cost.label), price, cost, 1.0)
        for (name, report), price in zip(reports, each, strict=True)
        for cost in costs_of(report, price)
    ]
    ordered = []
    for case in dict.fromkeys(row.cost.case for row in rows):
        same = sorted((row for row in rows if row.cost.case == case), key=lambda row: row.cost.per_request)
        least = same[0].cost.per_request
        ordered += [replace(row, times=row.cost.per_request / least) for row in same]
    return tuple(ordered)


def _machine(report: BenchReport, label: str) -> str:
    """What an engine ran on."""
    subject = next((subject for subject in report.subjects if subject.label == label), None)
    if subject is not None and is_on_cuda(subject.info) and report.machine.gpus:
        return report.machine.gpus[0].name
    return f"{report.machine.cpu_model}, {report.machine.physical_cores} cores"


def cost_table(rows: Sequence[MachineCost]) -> Table:
    """A row for each engine of each report; amounts in the currency of the prices."""
    figures = ("1M in", "1M out", "1000 requests", "times")
    heads = [Column(head) for head in ("case", "report", "engine", "machine", "price")]
    table = Table(
        *heads,
        *(Column(head, justify="right") for head in figures),
        title="Cost of tokens and requests, machine fully used; times the cheapest",
    )
    for row in rows:
        cost = row.cost
        amounts = (cost.per_million_in, cost.per_million_out, 1000 * cost.per_request)
        names = (cost.case.name, row.source, cost.label, row.machine, row.price.text)
        table.add_row(*names, *(amount_text(amount) for amount in amounts), f"{row.times:.2f}")
    return table
