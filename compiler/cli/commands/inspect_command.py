"""``llmc inspect``: what is in an artifact or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.option_field import number_list
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.tables.inspection_tables import diff_tables, inspection_tables


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE.onnx", help="Artifact or any ONNX file.", show_default=False)
    ],
    *,
    diff: Annotated[
        Path | None,
        typer.Option("--diff", metavar="OTHER", help="Show how this one differs instead.", show_default=False),
    ] = None,
    context: Annotated[
        int,
        typer.Option("--context", help="Tokens in the cache: for these, FLOPs are counted and memory is planned."),
    ] = 1024,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", metavar="N[,N…]", help="Plan the engine's memory for so many rows.", show_default=False
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            "--chunk", help="Most prompt tokens per row at once, with --batch. Default: all.", show_default=False
        ),
    ] = None,
    shown: Output,
) -> None:
    """Show operators, bytes by kind of weight, cache bytes and FLOPs per token, and what each pass did.

    With --batch, show also the memory that the engine will need. Works on any ONNX file. Weights are not read, so it
    takes no longer for a large model.
    """
    with shown.working():
        if diff is not None:
            from llmc.compiler.insight.inspection_diff import diff_paths

            difference = diff_paths(path, diff, context=context)
        else:
            from llmc.compiler.insight.inspection import inspect_path

            batches = () if batch is None else number_list("--batch", batch)
            inspection = inspect_path(path, context=context, batches=batches, chunk=chunk)
    if diff is not None:
        shown.show(lambda: diff_tables(difference), difference.to_json())
    else:
        shown.show(lambda: inspection_tables(inspection), inspection.to_json())
