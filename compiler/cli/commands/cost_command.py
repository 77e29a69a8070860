"""``llmc cost``: what tokens cost on machines that were measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.option_field import option
from llmc.compiler.cli.output import Output


@dataclass(frozen=True)
class Prices:
    """What the machines cost."""

    price: tuple[str, ...] = option(
        (),
        "What a machine costs, as 2.5/h, 60 EUR/d or 900 USD/month: one for all reports, or one for each, in order. "
        "Default: the price that each report was made with.",
        metavar="PRICE",
    )


def cost(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT...", help="Files that llmc bench --json wrote.", show_default=False),
    ],
    *,
    asked: Prices,
    shown: Output,
) -> None:
    """Compare what a million tokens, in and out, and a request cost on several machines.

    By the medians of each report and the machine's price by time, while it does nothing else: a floor. Nothing is
    measured.
    """
    with shown.working():
        from llmc.runtimes.bench.document import read_report
        from llmc.runtimes.bench.machine_costs import cost_table, machine_costs, prices_of

        names = [path.name for path in reports]
        read = [(path.name if names.count(path.name) == 1 else str(path), read_report(path)) for path in reports]
        rows = machine_costs(read, prices_of(read, asked.price))
    shown.show(lambda: cost_table(rows), {"costs": [row.to_json() for row in rows]})
