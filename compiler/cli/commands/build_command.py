"""``llmc build``: a target graph to an engine."""

from __future__ import annotations

from llmc.compiler.base.options import EngineOptions
from llmc.compiler.cli.cost import measured
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory, OutputDirectory, Overwrite, Threads
from llmc.compiler.cli.tables.artifact_table import artifact_table, manifest_json


def build(
    directory: Directory,
    output: OutputDirectory,
    *,
    threads: Threads = None,
    options: EngineOptions,
    overwrite: Overwrite = False,
    shown: Output,
) -> None:
    """Let the runtime make an engine of a target graph.

    The engine directory is complete: it holds the weights and the tokenizer, and needs only the runtime. TensorRT's
    engines are for certain lengths of the KV cache, rows and chunks; the precision of each layer is in receipt.json.
    """
    with shown.working() as progress, measured() as cost:
        from llmc.compiler.driver import driver

        manifest = driver.build(directory, output, options, threads=threads, overwrite=overwrite, progress=progress)
    shown.show(lambda: artifact_table(output, manifest, cost), manifest_json(output, manifest, cost))
