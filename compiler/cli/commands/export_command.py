"""``llmc export``: a checkpoint to a portable ONNX graph."""

from __future__ import annotations

from llmc.compiler.base.options import ExportOptions
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import (
    EXPORT,
    AsJson,
    ExportDtype,
    Model,
    ModelPath,
    OutputDirectory,
    Overwrite,
    Quiet,
    TrustRemoteCode,
    Verbose,
    VerifyWhen,
)
from llmc.compiler.cli.tables.artifact_table import artifact_table, manifest_json


def export(
    model: Model,
    output: OutputDirectory,
    dtype: ExportDtype = EXPORT.dtype,
    verify: VerifyWhen = EXPORT.verify,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    model_path: ModelPath = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Capture a model as a portable ONNX graph with its weights, tokenizer and manifest.

    The graph runs on any ONNX runtime, slowly; `llmc optimize` makes it fast on one. No weight is loaded to trace it.
    """
    shown = Output(as_json, quiet, verbose)
    options = ExportOptions(
        dtype=dtype, verify=verify, trust_remote_code=trust_remote_code, search_path=tuple(model_path or ())
    )
    with shown.working() as progress:
        from llmc.compiler.driver import driver

        manifest = driver.export(model, output, options, overwrite=overwrite, progress=progress)
    shown.show(lambda: artifact_table(output, manifest), manifest_json(output, manifest))
