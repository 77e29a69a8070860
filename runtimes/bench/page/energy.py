"""Sections: energy where the machine could tell, and cost where a price was given.

In: the runs. Out: sections; what was not measured is absent, not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmc.runtimes.bench.page.parts import Section, charts_section, spread_figure
from llmc.runtimes.bench.page.runs import Result, Runs
from llmc.runtimes.charts.markup import Markup


@dataclass(frozen=True)
class Quantity:
    """A figure of a result: its key, what it is called, its unit, its axis, what its numbers are multiplied by."""

    key: str
    name: str
    unit: str
    axis: str
    scale: float = 1.0


ENERGY = (
    Quantity("joules_per_token", "Energy", "J", "joules per decoded token"),
    Quantity("power_w", "Average power", "W", "watts during decode steps"),
)
COST = (
    Quantity("per_million_in", "Cost of prompts", "", "per million tokens in"),
    Quantity("per_million_out", "Cost of answers", "", "per million tokens out"),
    Quantity("per_request", "Cost of requests", "", "per 1,000 requests", 1e3),
)


def energy_section(runs: Runs) -> Section:
    """Joules per token and watts."""
    figures = _charts(runs.results(), ENERGY)
    note, wanted = "Of decode steps, idle power included.", "llmc bench where RAPL or NVML can be read"
    return charts_section("energy", "Energy", [note], figures, wanted)


def cost_section(runs: Runs) -> Section:
    """Price of a million tokens, and of a request."""
    prices = (document.value.at("price") for document in runs.documents)
    currencies = {price.at("currency").text for price in prices if price.fields()}
    unit = currencies.pop() if len(currencies) == 1 else ""
    figures = _charts(runs.results("costs"), [replace(quantity, unit=unit) for quantity in COST])
    told = [
        f"{document.name or 'The machine'} at {text}."
        for document in runs.documents
        if (text := document.value.at("price", "text").text)
    ]
    note = " ".join([*told, "A machine that never waits; the share of time in which it is busy divides the cost."])
    return charts_section("cost", "Cost", [note], figures, "llmc bench --price 2.5/h")


def _charts(results: Sequence[Result], quantities: Sequence[Quantity]) -> list[Markup]:
    figures = []
    for case in sorted({result.case for result in results}):
        for it in quantities:
            rows = [
                (result.engine, spread.scaled(it.scale))
                for result in results
                if result.case == case and (spread := result.spread(it.key))
            ]
            if rows:
                figures.append(spread_figure(f"{it.name}, {case.name}", it.axis, it.unit, rows))
    return figures
