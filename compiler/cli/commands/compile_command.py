"""``llmc compile``: a checkpoint to an engine: export, optimize and build in one go, and verified."""

from __future__ import annotations

from llmc.compiler.base.options import CompileOptions, EngineOptions, ExportOptions, OptimizeOptions
from llmc.compiler.cli.cost import measured
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Model, OutputDirectory, Overwrite, Threads
from llmc.compiler.cli.tables.pass_tables import compile_tables
from llmc.compiler.cli.tables.verification_table import failure_of


def compile_(
    model: Model,
    output: OutputDirectory,
    *,
    optimizing: OptimizeOptions,
    exporting: ExportOptions,
    threads: Threads = None,
    building: EngineOptions,
    overwrite: Overwrite = False,
    shown: Output,
) -> None:
    """Make an engine of a checkpoint: export, optimize and build in one go.

    The engine is compared with the model as transformers runs it, where that fits into memory.
    """
    options = CompileOptions(exporting, optimizing, threads, building)
    with shown.working() as progress, measured() as cost:
        from llmc.compiler.driver import driver

        report = driver.compile_model(model, output, options, overwrite=overwrite, progress=progress)
    shown.show(lambda: compile_tables(output, report, cost), {**report.to_json(), "cost": cost.to_json()})
    if report.verification is not None and not report.verification.passed:
        shown.fail(failure_of(report.verification, output))
