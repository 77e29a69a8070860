"""The commands as functions: checkpoint → portable graph → target graph → engine.

In: a model or an artifact, an output directory, options. Out: a new artifact and a report.
Every artifact appears whole or not at all; the weights of ``compile`` go from the checkpoint to the engine's file
without an intermediate graph on disk.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from llmc.compiler.artifact import new_artifact, open_artifact, write_manifest
from llmc.compiler.captured_model import capture_model, write_golden
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.errors import EngineError, FusionContractError, UsageError, VerificationError
from llmc.compiler.geometry import ModelGeometry
from llmc.compiler.golden import GOLDEN, Golden, load_golden
from llmc.compiler.manifest import EngineRecord, Manifest
from llmc.compiler.options import DEFAULT_CONTEXT, CompileOptions, ExportOptions, OptimizeOptions, Weights
from llmc.compiler.progress import NoProgress, Progress
from llmc.compiler.reports import CompileReport, OptimizeReport, PassOutcome, PlannedPass, VerifyReport
from llmc.compiler.verification import measure, report, tolerances
from llmc.compiler.versions import tool_versions
from llmc.compiler.write_model import DATA, MODEL, write_model
from llmc.passes.convert_float import ConvertFloat
from llmc.passes.graph_pass import GraphPass
from llmc.passes.pipeline import CpuTarget, CudaTarget, cpu_engine_passes, cpu_passes, cuda_engine_passes, cuda_passes
from llmc.passes.quantize_cache import QuantizeCache
from llmc.passes.quantize_fp8 import QuantizeFp8
from llmc.passes.quantize_weights import QuantizeWeights
from llmc.passes.runner import run_passes
from llmc.passes.set_cache_io import cache_kind
from llmc.passes.weight_traffic import decode_weight_bytes
from llmc.runtimes.cuda_device import cuda_devices
from llmc.runtimes.engine import Session
from llmc.runtimes.engines import RUNTIME_OF_TARGET, get_engine, open_session
from llmc.runtimes.onnxruntime_engine import ENGINE
from llmc.runtimes.operator_support import has_attribute, has_input

log = logging.getLogger(__name__)
KERNEL_PRECISIONS = ("int4", "int8")
"""Precisions for which llmc has CPU operators of its own."""
ASSETS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(
    model: str,
    output: Path,
    options: ExportOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Capture a model as a portable ONNX graph.

    Raises:
        CheckpointError, UnsupportedModelError, CaptureError: the model cannot be read or captured.
        ArtifactError: ``output`` exists, or the disk is full.
        VerificationError: the graph does not compute what the model computes.
    """
    progress = progress or NoProgress()
    progress.start("Reading checkpoint")
    checkpoint = open_checkpoint(model, search_path=options.search_path, trust_remote_code=options.trust_remote_code)
    with new_artifact(output, overwrite=overwrite) as staging:
        captured = capture_model(checkpoint, options, progress)
        _write(captured.model, staging, progress, weights=options.weights)
        checkpoint.write_assets(staging)
        write_golden(captured, staging, options, progress)
        manifest = write_manifest(staging, captured.manifest)
        if options.dtype == "bf16":
            log.warning("ONNX Runtime's CPU provider runs no bfloat16 graph; optimize will verify what it makes")
        else:
            manifest, _ = _measure_and_record(staging, manifest, progress)
    return manifest


def plan(directory: Path, options: OptimizeOptions) -> tuple[PlannedPass, ...]:
    """The passes that ``optimize`` would run, in order."""
    manifest = open_artifact(directory).manifest
    passes = _target_passes(manifest.model, options)
    return tuple(PlannedPass(type(item).__name__, item.configuration()) for item in passes)


def optimize(
    directory: Path,
    output: Path,
    options: OptimizeOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> OptimizeReport:
    """Rewrite a portable graph for a target.

    Raises:
        ArtifactError: ``directory`` holds no portable graph, or ``output`` cannot be written.
        FusionContractError: ``options.strict`` is set and a fusion did not fire where it should have.
        VerificationError: the result computes something else.
    """
    progress = progress or NoProgress()
    source = open_artifact(directory)
    if source.manifest.kind != "portable":
        raise UsageError(f"{directory} holds a {source.manifest.kind} graph; optimize takes what export made")
    with new_artifact(output, overwrite=overwrite) as staging:
        model = ir.load(directory / MODEL)
        outcomes = _optimize(model, source.manifest.model, options, directory, progress)
        _write(model, staging, progress)
        _copy_assets(directory, staging)
        manifest = write_manifest(staging, _target_manifest(source.manifest, model, options, outcomes))
        manifest, _ = _measure_and_record(staging, manifest, progress)
    return OptimizeReport(manifest, tuple(outcomes))


def build(
    directory: Path,
    output: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build the engine of a target graph.

    Raises:
        ArtifactError: ``directory`` holds no target graph, or ``output`` cannot be written.
        EngineError: the runtime refuses the graph.
        VerificationError: the engine computes something else.
    """
    progress = progress or NoProgress()
    source = open_artifact(directory)
    if source.manifest.kind != "target":
        raise UsageError(f"{directory} holds a {source.manifest.kind} graph; build takes what optimize made")
    with new_artifact(output, overwrite=overwrite) as staging:
        progress.start("Copying weights")
        for name in (MODEL, DATA):
            shutil.copyfile(directory / name, staging / name)
        _copy_assets(directory, staging)
        manifest = _build(staging, source.manifest, threads, progress)
        manifest, _ = _measure_and_record(staging, manifest, progress)
    return manifest


def compile_model(
    model: str,
    output: Path,
    options: CompileOptions,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CompileReport:
    """Checkpoint to engine in one go.

    Raises:
        LlmcError: as ``export``, ``optimize`` and ``build``.
    """
    progress = progress or NoProgress()
    progress.start("Reading checkpoint")
    exporting = options.export
    checkpoint = open_checkpoint(
        model, search_path=exporting.search_path, trust_remote_code=exporting.trust_remote_code
    )
    with new_artifact(output, overwrite=overwrite) as staging:
        captured = capture_model(checkpoint, exporting, progress)
        checkpoint.write_assets(staging)
        skipped = write_golden(captured, staging, exporting, progress)
        outcomes = _optimize(captured.model, captured.manifest.model, options.optimize, staging, progress)
        _write(captured.model, staging, progress, weights=exporting.weights)
        target = _target_manifest(captured.manifest, captured.model, options.optimize, outcomes)
        manifest = _build(staging, target, options.threads, progress)
        manifest, verification = _measure_and_record(staging, manifest, progress)
    return CompileReport(manifest, tuple(outcomes), verification, skipped)


def verify(directory: Path, *, threads: int | None = None, progress: Progress | None = None) -> VerifyReport:
    """Measure an artifact against its golden data.

    Raises:
        ArtifactError: the artifact is damaged, or carries no golden data.
    """
    progress = progress or NoProgress()
    artifact = open_artifact(directory)
    progress.start("Checking files")
    artifact.check_hashes()
    golden = load_golden(directory)
    if golden is None:
        raise UsageError(f"{directory} carries no golden data; compile it again with --verify on")
    progress.start("Verifying")
    session = open_session(directory, threads=threads)
    try:
        return report(measure(session, golden), artifact.manifest.tolerances)
    finally:
        session.close()


def _optimize(
    model: ir.Model, geometry: ModelGeometry, options: OptimizeOptions, directory: Path, progress: Progress
) -> list[PassOutcome]:
    """Run the target's passes; ``directory`` may hold golden data, whose ranges of keys and values are used."""
    passes = _target_passes(geometry, options, load_golden(directory))
    outcomes = run_passes(model, passes, dump=options.dump, progress=progress)
    shortfalls = [sentence for outcome in outcomes for sentence in outcome.shortfalls]
    if options.strict and shortfalls:
        more = f" (and {len(shortfalls) - 3} more)" if len(shortfalls) > 3 else ""
        raise FusionContractError("; ".join(shortfalls[:3]) + more)
    return outcomes


def _target_passes(
    geometry: ModelGeometry, options: OptimizeOptions, golden: Golden | None = None
) -> list[GraphPass]:
    positions = max_context(geometry, options)
    if options.target == "cuda":
        return cuda_passes(_cuda_target(positions, options, golden))
    target = CpuTarget(
        max_positions=positions,
        cache=options.cache,
        logits=options.logits,
        quantization=_quantization(options),
        query_seqlens=has_input("com.microsoft", "GroupQueryAttention", "query_seqlens"),
        expert_kernels=has_attribute("com.microsoft", "QMoE", "accuracy_level"),
    )
    return cpu_passes(target)


def _cuda_target(positions: int, options: OptimizeOptions, golden: Golden | None) -> CudaTarget:
    quantized_cache = None
    if options.cache_precision != "auto":
        ranges = golden.cache_ranges if golden is not None else None
        quantized_cache = QuantizeCache.from_ranges(options.cache_precision, ranges)
    weights = QuantizeFp8(options.blocks) if options.precision == "fp8" else _quantization(options)
    return CudaTarget(
        max_positions=positions,
        activations=options.activations,
        cache=options.cache,
        logits=options.logits,
        quantization=weights,
        quantized_cache=quantized_cache,
        pack_gate_up=options.precision not in KERNEL_PRECISIONS,
    )


def _quantization(options: OptimizeOptions) -> QuantizeWeights | None:
    bits = {"int4": 4, "int8": 8}.get(options.precision)
    if bits is None:
        return None
    head = {"int4": 4, "int8": 8, "auto": 8}[options.head]
    on_cpu = options.target == "cpu"
    # Four bits need the offset, which the GPU's kernel has not; eight are near enough without.
    plain = options.symmetric if options.symmetric is not None else bits == 8 or not on_cpu
    return QuantizeWeights(
        bits=4 if bits == 4 else 8,
        block_size=options.blocks,
        symmetric=plain or on_cpu,
        offset=not plain and on_cpu,
        head_bits=4 if head == 4 else 8,
        accuracy_level=4 if on_cpu else 0,
    )


def max_context(geometry: ModelGeometry, options: OptimizeOptions) -> int:
    """Longest context of the target graph.

    Raises:
        UsageError: more is asked for than the model was made for.
    """
    limit = geometry.max_position_embeddings
    if options.context is None:
        return min(limit or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if limit is not None and options.context > limit:
        raise UsageError(
            f"--context {options.context} is more than the {limit} positions that the model was made for"
        )
    return options.context


def _target_manifest(
    portable: Manifest, model: ir.Model, options: OptimizeOptions, outcomes: list[PassOutcome]
) -> Manifest:
    return replace(
        portable,
        kind="target",
        target=options.target,
        precision=options.precision,
        cache=cache_kind(model),
        logits=options.logits,
        max_context=max_context(portable.model, options),
        weight_bytes=decode_weight_bytes(model),
        passes=(*portable.passes, *(outcome.record for outcome in outcomes)),
        tolerances={},
        measured={},
        files={},
        tools=tool_versions(),
    )


def _build(staging: Path, target: Manifest, threads: int | None, progress: Progress) -> Manifest:
    progress.start("Building engine")
    passes = _engine_passes(target)
    if passes:
        model = ir.load(staging / MODEL)
        outcomes = run_passes(model, passes)
        target = replace(target, passes=(*target.passes, *(outcome.record for outcome in outcomes)))
        onnx.save_model(ir.to_proto(model), staging / ENGINE)
    runtime = RUNTIME_OF_TARGET.get(target.target, str(target.target))
    details = get_engine(runtime).build(staging, staging, threads=threads)
    record = EngineRecord(runtime=runtime, threads=threads, profiles=(), details=dict(details))
    return write_manifest(
        staging, replace(target, kind="engine", engine=record, measured={}, tolerances={}, files={})
    )


def _engine_passes(target: Manifest) -> list[GraphPass]:
    """Passes from a target's graph to the engine's; none where the engine opens the graph itself."""
    if target.target == "cuda":
        # Lengths can only be inputs where attention takes lengths, and a device's cache is one buffer.
        lowered = any(record.name == "LowerAttention" and record.counts.get("attention") for record in target.passes)
        return cuda_engine_passes() if lowered and target.cache == "shared" else []
    return cpu_engine_passes() if target.precision in KERNEL_PRECISIONS else []


def _measure_and_record(
    staging: Path, manifest: Manifest, progress: Progress
) -> tuple[Manifest, VerifyReport | None]:
    """Compare with golden data where there is some; what was measured and what is tolerated go into the manifest."""
    golden = load_golden(staging)
    if golden is None:
        return manifest, None
    progress.start("Verifying")
    session = _open_for_measuring(staging, manifest)
    if session is None:
        return manifest, None
    try:
        measured = measure(session, golden)
    except EngineError as error:
        if not _runs_elsewhere(manifest):
            raise
        # Some of the CPU provider's kernels refuse an input only when they run.
        _warn_not_compared(error)
        return manifest, None
    finally:
        session.close()
    accepted = tolerances(_weight_precision(manifest), measured)
    result = report(measured, accepted)
    if not result.passed:
        failed = next(check for check in result.checks if not check.passed)
        raise VerificationError(
            f"the {manifest.kind} does not say what the model says: {failed.name} is {failed.measured:.3g}, "
            f"{failed.tolerance:.3g} is accepted; nothing was written"
        )
    final = replace(manifest, measured=measured.to_mapping(), tolerances=accepted, files={})
    return write_manifest(staging, final), result


def _open_for_measuring(staging: Path, manifest: Manifest) -> Session | None:
    """The engine, on the host where its GPU is not here; None, with a warning, where neither runs it."""
    if not _runs_elsewhere(manifest):
        return open_session(staging)
    from llmc.runtimes.onnxruntime_cuda_engine import open_on_host

    try:
        return open_on_host(staging)
    except EngineError as error:
        _warn_not_compared(error)
        return None


def _runs_elsewhere(manifest: Manifest) -> bool:
    """Whether the artifact is for a GPU that is not here."""
    return manifest.target == "cuda" and not cuda_devices()


def _warn_not_compared(error: EngineError) -> None:
    log.warning("not compared with the model: there is no GPU here, and the CPU does not run it (%s)", error)


def _weight_precision(manifest: Manifest) -> str:
    """Weights that were rounded to half precision stay so, whatever they are computed with."""
    rounded = any(record.name == ConvertFloat.__name__ and record.counts for record in manifest.passes)
    return "fp16" if rounded and manifest.precision == "fp32" else manifest.precision


def _write(model: ir.Model, staging: Path, progress: Progress, *, weights: Weights = "model") -> None:
    started = False

    def advance(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.start("Writing weights", total=total, unit="bytes")
            started = True
        progress.advance(done)

    write_model(model, staging, advance, weights=weights == "model")


def _copy_assets(source: Path, staging: Path) -> None:
    for name in (*ASSETS, GOLDEN):
        if (source / name).exists():
            shutil.copyfile(source / name, staging / name)
