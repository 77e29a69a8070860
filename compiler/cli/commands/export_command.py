"""``llmc export``: a checkpoint to a portable ONNX graph."""

from __future__ import annotations

from typing import Annotated

from llmc.compiler.base.options import ExportOptions
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Model, OutputDirectory, Overwrite
from llmc.compiler.cli.signature import Without
from llmc.compiler.cli.tables.artifact_table import artifact_table, manifest_json


def export(
    model: Model,
    output: OutputDirectory,
    *,
    options: Annotated[ExportOptions, Without({"weights"})],
    overwrite: Overwrite = False,
    shown: Output,
) -> None:
    """Capture a model as a portable ONNX graph with its weights, tokenizer and manifest.

    The graph runs on any ONNX runtime, slowly; `llmc optimize` makes it fast on one. No weight is loaded to trace it.
    """
    with shown.working() as progress:
        from llmc.compiler.driver import driver

        manifest = driver.export(model, output, options, overwrite=overwrite, progress=progress)
    shown.show(lambda: artifact_table(output, manifest), manifest_json(output, manifest))
