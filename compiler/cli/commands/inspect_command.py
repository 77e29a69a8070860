"""``llmc inspect``: what is in an artifact, a checkpoint or an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.option_field import number_list, option
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.tables.inspection_tables import diff_tables, inspection_json, inspection_tables
from llmc.compiler.cli.tables.model_facts_table import facts_table


@dataclass(frozen=True)
class Question:
    """What is asked of a graph."""

    diff: Path | None = option(None, "Show how this one differs instead.", metavar="OTHER")
    context: int = option(1024, "Tokens in the cache: for these, FLOPs are counted and memory is planned.")
    batches: tuple[int, ...] = option(
        (), "Plan the engine's memory for so many rows.", "--batch", metavar="N[,N…]", parse=number_list
    )
    chunk: int | None = option(None, "Most prompt tokens per row at once, with --batch. Default: all.")


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|FILE", help="Artifact, any ONNX file, or a checkpoint: DIR or FILE.gguf.", show_default=False
        ),
    ],
    *,
    asked: Question,
    shown: Output,
) -> None:
    """Show operators, bytes by kind of weight, cache bytes and FLOPs per token, and what each pass did.

    Of the model show the rotation's parameters, end tokens, window, and how its source stored the weights; of a
    checkpoint, these alone. With --batch, show also the memory that the engine will need. Works on any ONNX file.
    Weights are not read, so it takes no longer for a large model.
    """
    if asked.diff is not None:
        with shown.working():
            from llmc.compiler.insight.inspection_diff import diff_paths

            difference = diff_paths(path, asked.diff, context=asked.context)
        shown.show(lambda: diff_tables(difference), difference.to_json())
        return
    with shown.working():
        from llmc.compiler.driver.model_facts import artifact_facts, checkpoint_facts, find_checkpoint

        checkpoint = find_checkpoint(path)
        source = None if checkpoint is None else checkpoint_facts(checkpoint)
    if source is not None:
        shown.show(lambda: facts_table(source), {"schema_version": 1, "model": source.to_json()})
        return
    with shown.working():
        from llmc.compiler.insight.inspection import inspect_path

        inspection = inspect_path(path, context=asked.context, batches=asked.batches, chunk=asked.chunk)
        facts = None if inspection.manifest is None else artifact_facts(path)
    shown.show(lambda: inspection_tables(inspection, facts), inspection_json(inspection, facts))
