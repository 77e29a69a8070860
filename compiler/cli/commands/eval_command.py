"""``llmc eval``: how much worse engines are than the model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.compiler.artifact.manifest import MANIFEST_NAME
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.whole_file import require_writable, write_whole
from llmc.compiler.cli.ci_output import CiOutput
from llmc.compiler.cli.commands.bench_command import checkpoint_path, subject_labels
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.signature import Without
from llmc.compiler.cli.tables.evaluation_table import evaluation_tables
from llmc.runtimes.bench.peers.options import NamedPeers
from llmc.runtimes.evaluation.options import EvaluationOptions

if TYPE_CHECKING:
    from llmc.compiler.base.progress import Progress


@dataclass(frozen=True)
class Comparison:
    """What stands beside the engines, and where the report goes."""

    peers: tuple[str, ...] = option(
        (),
        "Another runtime, as a row of its own; repeatable. By its name alone, as llmc bench --install-peers made it, "
        "with what its own converter makes of the reference: llama.cpp@Q4_0, onnxruntime-genai, openvino-genai@int8, "
        "ctranslate2, transformers@bfloat16. Or with an interpreter of your own and a model as it is: NAME is "
        "llamacpp-python (SOURCE: a GGUF file), genai, openvino-genai, ctranslate2 or transformers (a directory).",
        "--peer",
        metavar="NAME[@TYPE]|NAME=PYTHON:SOURCE",
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
    named: Annotated[NamedPeers, Without({"checkpoint", "install", "listing"})],
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
        named = replace(named, checkpoint=reference)
        peers = logits_peers(asked.peers, named, lambda model: converted_model(model, reading, progress), progress)
        report = evaluate(engines, peers, reference, options, reading, progress=progress)
        recording.suite = evaluation_suite(report)
        remember(report.to_json())
    try:
        if file is not None:
            write_whole(json.dumps(report.to_json(), indent=2) + "\n", file)
    finally:
        shown.show(lambda: evaluation_tables(report), report.to_json())


def converted_model(model: str, reading: ExportOptions, progress: Progress) -> Path:
    """The checkpoint of a reference, which peers' converters read as it is.

    Raises:
        UsageError: the reference is an engine, or is changed by options before it is evaluated.
        CheckpointError: there is none.
    """
    if (Path(model) / MANIFEST_NAME).is_file():
        raise UsageError(f"peers by name convert the reference, and {model} is an engine: name the model")
    if reading.adapters or reading.revision is not None:
        raise UsageError(
            "peers by name convert the reference as it lies on the disk: name its directory, without --adapter and "
            "--revision"
        )
    return checkpoint_path(model, progress)
