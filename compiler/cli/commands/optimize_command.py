"""``llmc optimize``: a portable graph to a graph for one target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.artifact.ledger_report import LedgerError
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory, Overwrite
from llmc.compiler.cli.tables.ledger_table import ledger_table
from llmc.compiler.cli.tables.pass_tables import optimize_tables, plan_table


def optimize(
    directory: Directory,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Directory to make; not needed with --dry-run."),
    ] = None,
    options: OptimizeOptions,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Measure the graph after every pass; fail where one costs more than it says."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the passes and run none.")] = False,
    overwrite: Overwrite = False,
    shown: Output,
) -> None:
    """Rewrite a portable graph into what one runtime does fast, and show what each pass did.

    A fusion that fires less often than the model's layers ask for is named with the node and the condition that
    failed; with --strict it is an error. With --verify the graph runs on the CPU after every pass: a pass that costs
    more than it says is named with its node, and a folder beside the output shows it with onnxruntime alone.
    """
    if output is None and not dry_run:
        raise UsageError("no output directory; give one with -o DIR, or --dry-run to see the passes")
    from llmc.compiler.driver import driver

    if output is None or dry_run:
        plan = driver.plan(directory, options)
        shown.show(lambda: plan_table(plan), {"passes": [item.to_json() for item in plan]})
        return
    try:
        with shown.working() as progress:
            report = driver.optimize(
                directory, output, options, verify=verify, overwrite=overwrite, progress=progress
            )
    except LedgerError as error:
        ledger = error.report
        shown.show(lambda: ledger_table(ledger), {"ledger": ledger.to_json()})
        shown.fail(error)
    shown.show(lambda: optimize_tables(output, report), report.to_json())
