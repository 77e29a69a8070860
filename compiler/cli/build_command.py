"""``llmc build``: a target graph to an engine."""

from __future__ import annotations

from llmc.compiler.cli.artifact_table import artifact_table, manifest_json
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import AsJson, Directory, OutputDirectory, Overwrite, Quiet, Threads, Verbose


def build(
    directory: Directory,
    output: OutputDirectory,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Let the runtime make an engine of a target graph.

    The engine directory is complete: it holds the weights and the tokenizer, and needs only the runtime.
    """
    shown = Output(as_json, quiet, verbose)
    with shown.working() as progress:
        from llmc.compiler import driver

        manifest = driver.build(directory, output, threads=threads, overwrite=overwrite, progress=progress)
    shown.show(lambda: artifact_table(output, manifest), manifest_json(output, manifest))
