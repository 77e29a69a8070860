"""``llmc optimize``: a portable graph to a graph for one target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import (
    AUTO_BLOCK_SIZE,
    AUTO_CACHE,
    AUTO_PRECISION,
    OPTIMIZE,
    ActivationType,
    AsJson,
    BlockSize,
    CacheIo,
    CacheType,
    Context,
    Directory,
    Dump,
    Head,
    LogitsRows,
    Overwrite,
    Quiet,
    Strict,
    Symmetric,
    TargetName,
    Verbose,
    WeightPrecision,
)
from llmc.compiler.cli.tables.pass_tables import optimize_tables, plan_table


def optimize(
    directory: Directory,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Directory to make; not needed with --dry-run."),
    ] = None,
    target: TargetName = OPTIMIZE.target,
    precision: WeightPrecision = AUTO_PRECISION,
    activations: ActivationType = OPTIMIZE.activations,
    kv: CacheIo = AUTO_CACHE,
    kv_precision: CacheType = OPTIMIZE.cache_precision,
    logits: LogitsRows = OPTIMIZE.logits,
    context: Context = OPTIMIZE.context,
    block_size: BlockSize = AUTO_BLOCK_SIZE,
    symmetric: Symmetric = OPTIMIZE.symmetric,
    head: Head = OPTIMIZE.head,
    strict: Strict = OPTIMIZE.strict,
    dump: Dump = OPTIMIZE.dump,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the passes and run none.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Rewrite a portable graph into what one runtime does fast, and show what each pass did.

    A fusion that fires less often than the model's layers ask for is named with the node and the condition that
    failed; with --strict it is an error.
    """
    shown = Output(as_json, quiet, verbose)
    options = OptimizeOptions(
        target=target,
        precision=precision,
        activations=activations,
        cache_precision=kv_precision,
        cache=kv,
        logits=logits,
        context=context,
        block_size=block_size,
        symmetric=symmetric,
        head=head,
        strict=strict,
        dump=dump,
    )
    if output is None and not dry_run:
        raise UsageError("no output directory; give one with -o DIR, or --dry-run to see the passes")
    from llmc.compiler.driver import driver

    if output is None or dry_run:
        plan = driver.plan(directory, options)
        shown.show(lambda: plan_table(plan), {"passes": [item.to_json() for item in plan]})
        return
    with shown.working() as progress:
        report = driver.optimize(directory, output, options, overwrite=overwrite, progress=progress)
    shown.show(lambda: optimize_tables(output, report), report.to_json())
