"""``llmc eval``: how much worse engines are than the model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.option_field import option
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.whole_file import require_writable, write_whole
from llmc.compiler.cli.ci_output import CiOutput
from llmc.compiler.cli.commands.bench_command import subject_labels
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.signature import Without
from llmc.compiler.cli.tables.evaluation_table import evaluation_tables
from llmc.runtimes.evaluation.options import EvaluationOptions


@dataclass(frozen=True)
class Comparison:
    """What stands beside the engines, and where the report goes."""

    peers: tuple[str, ...] = option(
        (),
        "A model file that another program runs, as a row of its own; repeatable. NAME is llamacpp-python, PYTHON "
        "the interpreter that has it, FILE a GGUF file.",
        "--peer",
        metavar="NAME=PYTHON:FILE",
    )
    file: str | None = option(None, "Write the report there; - for stdout.", "--json", metavar="FILE")


def eval_(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Engines, or graphs.", show_default=False)
    ],
    *,
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="What counts as right: the model that was compiled (transformers runs it, in float32 with eager "
            "attention), or the directory of a float32 engine that was verified.",
            show_default=False,
        ),
    ],
    asked: Comparison,
    options: EvaluationOptions,
    reading: Annotated[ExportOptions, Without({"dtype", "verify", "weights"})],
    told: CiOutput,
    shown: Annotated[Output, Without({"json"})],
) -> None:
    """Measure what engines lose against their model on a text: perplexity, KL divergence, equal predictions.

    Figures are those of llama-perplexity with --kl-divergence: the same windows, the same scored positions, the same
    formulas. The reference's logits are computed once and kept on disk; an interrupted run goes on where it was.
    """
    shown = replace(shown, json=asked.file == "-")
    file = None if asked.file is None or shown.json else Path(asked.file)
    if file is not None:
        require_writable(file)
    with told.recording("llmc eval", reference) as recording, shown.working() as progress:
        from llmc.compiler.cli.suites.evaluation_suite import evaluation_suite
        from llmc.compiler.driver.evaluation import evaluate, logits_peers
        from llmc.runtimes.bench.quality import remember

        engines = list(zip(subject_labels(directories), directories, strict=True))
        peers = logits_peers(asked.peers)
        report = evaluate(engines, peers, reference, options, reading, progress=progress)
        recording.suite = evaluation_suite(report)
        remember(report.to_json())
    try:
        if file is not None:
            write_whole(json.dumps(report.to_json(), indent=2) + "\n", file)
    finally:
        shown.show(lambda: evaluation_tables(report), report.to_json())
