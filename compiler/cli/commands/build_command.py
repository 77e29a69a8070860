"""``llmc build``: a target graph to an engine."""

from __future__ import annotations

from typing import Annotated

import typer

from llmc.compiler.cli.cost import measured
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import (
    ENGINE,
    ENGINE_PANEL,
    AsJson,
    Capacity,
    Chunk,
    Directory,
    Gpu,
    MaxBatch,
    OutputDirectory,
    Overwrite,
    Quiet,
    StripWeights,
    Threads,
    Verbose,
    engine_options,
)
from llmc.compiler.cli.tables.artifact_table import artifact_table, manifest_json


def build(
    directory: Directory,
    output: OutputDirectory,
    threads: Threads = None,
    max_batch: MaxBatch = ENGINE.max_batch,
    chunk: Chunk = ENGINE.chunk,
    capacity: Capacity = None,
    gpu: Gpu = None,
    strip_weights: StripWeights = ENGINE.strip_weights,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Fail when a product runs in another precision than asked.", rich_help_panel=ENGINE_PANEL
        ),
    ] = ENGINE.strict,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Let the runtime make an engine of a target graph.

    The engine directory is complete: it holds the weights and the tokenizer, and needs only the runtime. TensorRT's
    engines are for certain lengths of the KV cache, rows and chunks; the precision of each layer is in receipt.json.
    """
    shown = Output(as_json, quiet, verbose)
    options = engine_options(max_batch, chunk, capacity, gpu, strip_weights, strict)
    with shown.working() as progress, measured() as cost:
        from llmc.compiler.driver import driver

        manifest = driver.build(directory, output, options, threads=threads, overwrite=overwrite, progress=progress)
    shown.show(lambda: artifact_table(output, manifest, cost), manifest_json(output, manifest, cost))
