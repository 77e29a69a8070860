"""``llmc compile``: a checkpoint to an engine: export, optimize and build in one go, and verified."""

from __future__ import annotations

from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.cli.cost import measured
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import (
    AUTO_BLOCK_SIZE,
    AUTO_CACHE,
    AUTO_PRECISION,
    ENGINE,
    EXPORT,
    OPTIMIZE,
    ActivationType,
    AsJson,
    BlockSize,
    CacheIo,
    CacheType,
    Capacity,
    Chunk,
    Context,
    Dump,
    ExportDtype,
    Gpu,
    Head,
    LogitsRows,
    MaxBatch,
    Model,
    ModelPath,
    OutputDirectory,
    Overwrite,
    Quiet,
    Strict,
    StripWeights,
    Symmetric,
    TargetName,
    Threads,
    TrustRemoteCode,
    Verbose,
    VerifyWhen,
    WeightPrecision,
    WeightSource,
    engine_options,
)
from llmc.compiler.cli.tables.pass_tables import compile_tables
from llmc.compiler.cli.tables.verification_table import failure_of


def compile_(
    model: Model,
    output: OutputDirectory,
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
    dtype: ExportDtype = EXPORT.dtype,
    strict: Strict = OPTIMIZE.strict,
    dump: Dump = OPTIMIZE.dump,
    threads: Threads = None,
    max_batch: MaxBatch = ENGINE.max_batch,
    chunk: Chunk = ENGINE.chunk,
    capacity: Capacity = None,
    gpu: Gpu = None,
    strip_weights: StripWeights = ENGINE.strip_weights,
    verify: VerifyWhen = EXPORT.verify,
    weights: WeightSource = EXPORT.weights,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    model_path: ModelPath = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Make an engine of a checkpoint: export, optimize and build in one go.

    The engine is compared with the model as transformers runs it, where that fits into memory.
    """
    shown = Output(as_json, quiet, verbose)
    exporting = ExportOptions(
        dtype=dtype,
        verify=verify,
        trust_remote_code=trust_remote_code,
        search_path=tuple(model_path or ()),
        weights=weights,
    )
    optimizing = OptimizeOptions(
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
    engine = engine_options(max_batch, chunk, capacity, gpu, strip_weights, strict)
    options = CompileOptions(exporting, optimizing, threads, engine)
    with shown.working() as progress, measured() as cost:
        from llmc.compiler.driver import driver

        report = driver.compile_model(model, output, options, overwrite=overwrite, progress=progress)
    shown.show(lambda: compile_tables(output, report, cost), {**report.to_json(), "cost": cost.to_json()})
    if report.verification is not None and not report.verification.passed:
        shown.fail(failure_of(report.verification, output))
