"""``llmc doctor``: what this machine and this environment can do, and whether an engine fits into its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.tables.doctor_tables import doctor_tables, fit_table

MEMORY_PANEL = "Memory of an engine"


def doctor(
    *,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Say whether this engine's memory is free; the exit code is 9 when it is not.",
            show_default=False,
            rich_help_panel=MEMORY_PANEL,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            help="Tokens per row. Default: the engine's longest context.",
            show_default=False,
            rich_help_panel=MEMORY_PANEL,
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Rows.", rich_help_panel=MEMORY_PANEL)] = 1,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk",
            help="Most prompt tokens per row at once. Default: all.",
            show_default=False,
            rich_help_panel=MEMORY_PANEL,
        ),
    ] = None,
    shown: Output,
) -> None:
    """Show versions, execution providers, CPU features, and what each target still needs here.

    With --model, say whether the memory that an engine needs is free, on the GPU or, for a CPU engine, in RAM.
    """
    if model is None and (context is not None or batch != 1 or chunk is not None):
        raise UsageError("--context, --batch and --chunk describe an engine; name it with --model DIR")
    with shown.working():
        from llmc.compiler.insight.doctor import examine
        from llmc.compiler.insight.memory_fit import check_memory

        report = examine()
        fit = check_memory(model, report.gpus, context=context, batch=batch, chunk=chunk) if model else None
    if model is None or fit is None:
        shown.show(lambda: doctor_tables(report), report.to_json())
        return
    shown.show(lambda: fit_table(model, fit), {**report.to_json(), "model": fit.to_json()})
    if fit.problem is not None:
        shown.fail(EngineError(fit.problem))
