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

from llmc.compiler.artifact.artifact import new_artifact, open_artifact, write_manifest
from llmc.compiler.artifact.golden import GOLDEN, load_golden
from llmc.compiler.artifact.manifest import ArtifactKind, EngineRecord, Manifest
from llmc.compiler.artifact.reports import CompileReport, OptimizeReport, PassOutcome, PlannedPass, VerifyReport
from llmc.compiler.base.contract import DATA, ENGINE_GRAPH, GRAPH
from llmc.compiler.base.errors import ArtifactError, FusionContractError, UsageError
from llmc.compiler.base.geometry import ModelGeometry, stated_context
from llmc.compiler.base.options import (
    CompileOptions,
    EngineOptions,
    ExportOptions,
    OptimizeOptions,
    Weights,
    require_divergence,
)
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.base.targets import get_target
from llmc.compiler.base.versions import tool_versions
from llmc.compiler.driver.capabilities import Capabilities, find_capabilities
from llmc.compiler.driver.captured_model import capture_model, write_golden
from llmc.compiler.driver.chosen_numbers import chosen_numbers, require_kept_numbers
from llmc.compiler.driver.genai_config import write_genai_config
from llmc.compiler.driver.kept_ledger import keeping_ledger
from llmc.compiler.driver.measured_artifact import measure_and_record, measure_graphs, report
from llmc.compiler.driver.opened_model import open_model
from llmc.compiler.driver.target_passes import Numbers, engine_passes, longest_context, max_context, target_passes
from llmc.compiler.graph.census import read_bytes
from llmc.compiler.graph.read_model import read_model
from llmc.compiler.graph.write_model import write_model
from llmc.compiler.ledger.ledger import Ledger
from llmc.compiler.quantization.plan import make_plan, require_keeping
from llmc.passes.runner import merge_contract, run_passes
from llmc.runtimes.engines import get_engine
from llmc.runtimes.session.engine import BuildRequest

log = logging.getLogger(__name__)
ASSETS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def export(
    model: str, output: Path, options: ExportOptions, *, overwrite: bool = False, progress: Progress = NO_PROGRESS
) -> Manifest:
    """Capture a model as a portable ONNX graph.

    Raises:
        CheckpointError, UnsupportedModelError, CaptureError: the model cannot be read or captured.
        ArtifactError: ``output`` exists, or the disk is full.
        VerificationError: the graph does not compute what the model computes.
    """
    progress.start("Reading checkpoint")
    checkpoint = open_model(model, options, progress)
    with new_artifact(output, overwrite=overwrite) as staging:
        captured = capture_model(checkpoint, options, progress)
        _write(captured.model, staging, progress, weights=options.weights)
        checkpoint.write_assets(staging)
        write_golden(captured, staging, options, progress)
        manifest = write_manifest(staging, captured.manifest)
        if options.dtype == "bf16":
            log.warning("ONNX Runtime's CPU provider runs no bfloat16 graph; optimize will verify what it makes")
        else:
            manifest, _ = measure_and_record(staging, manifest, progress)
    return manifest


def plan(directory: Path, options: OptimizeOptions) -> tuple[PlannedPass, ...]:
    """The passes that ``optimize`` would run, in order."""
    manifest = open_artifact(directory).manifest
    capabilities = find_capabilities(installed=options.installed_runtime)
    # Whether a text can calibrate the model shows when it is tried.
    numbers = Numbers(chosen_by=f"--effort {options.effort}")
    passes = target_passes(manifest.model, options, capabilities, numbers=numbers)
    return tuple(PlannedPass(type(item).__name__, item.configuration()) for item in passes)


def optimize(
    directory: Path,
    output: Path,
    options: OptimizeOptions,
    *,
    verify: bool = False,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> OptimizeReport:
    """Rewrite a portable graph for a target.

    Args:
        directory: What ``export`` made.
        output: Directory to make.
        options: What to make of the graph.
        verify: Measure the graph after every pass, and look for the node where one cost more than it says.
        overwrite: Replace an artifact that is there.
        progress: Told how far it is.

    Raises:
        ArtifactError: ``directory`` holds no portable graph, or ``output`` cannot be written.
        FusionContractError: ``options.strict`` is set and a fusion did not fire where it should have.
        VerificationError: the result computes something else.
        LedgerError: with ``verify``, a pass cost more than it says. A folder beside ``output`` then has the place.
    """
    if options.keep_quantization:
        raise UsageError(
            "a portable graph does not say how its checkpoint was quantized; --keep-quantization is for llmc compile"
        )
    portable = _open_input(directory, "portable", "optimize takes what export made")
    _require_golden_within(max_context(portable.model, options), directory)
    with new_artifact(output, overwrite=overwrite) as staging:
        model = read_model(directory / GRAPH)
        capabilities = find_capabilities(installed=options.installed_runtime)
        with chosen_numbers(model, portable, options, capabilities, directory, progress) as numbers:
            with keeping_ledger(staging, output, portable, load_golden(directory), wanted=verify) as ledger:
                outcomes = _optimize(
                    model, portable.model, options, capabilities, numbers, directory, progress, ledger
                )
            _write(model, staging, progress)
        _copy_assets(directory, staging)
        target = _target_manifest(portable, model, options, outcomes, numbers)
        refused = write_genai_config(staging, target)
        manifest = write_manifest(staging, target)
        manifest, verification = measure_and_record(staging, manifest, progress, options.max_kl)
    costs = ledger.report() if ledger else None
    return OptimizeReport(manifest, tuple(outcomes), refused, costs, verification)


def build(
    directory: Path,
    output: Path,
    options: EngineOptions | None = None,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Manifest:
    """Build the engine of a target graph.

    Args:
        directory: What ``optimize`` made.
        output: Directory to make.
        options: What to build a TensorRT engine for.
        threads: Threads to build the engine for; None: chosen where it is opened.
        overwrite: Replace an artifact that is there.
        progress: Told how far it is.

    Raises:
        UsageError: ``options`` are not for this target.
        ArtifactError: ``directory`` holds no target graph, or ``output`` cannot be written.
        EngineError: the runtime refuses the graph.
        VerificationError: the engine computes something else.
    """
    target = _open_input(directory, "target", "build takes what optimize made")
    if options is not None:
        options.require_context(target.max_context)
    with new_artifact(output, overwrite=overwrite) as staging:
        progress.start("Copying weights")
        for name in (GRAPH, DATA):
            shutil.copyfile(directory / name, staging / name)
        _copy_assets(directory, staging)
        write_genai_config(staging, target)
        manifest = _build(staging, target, options or EngineOptions(), threads, progress)
        manifest, _ = measure_and_record(staging, manifest, progress)
    return manifest


def compile_model(
    model: str, output: Path, options: CompileOptions, *, overwrite: bool = False, progress: Progress = NO_PROGRESS
) -> CompileReport:
    """Checkpoint to engine in one go.

    Raises:
        LlmcError: as ``export``, ``optimize`` and ``build``.
    """
    get_target(options.optimize.target).require_installed()
    make_plan(options.optimize)  # What the target has not is refused before anything is read.
    require_keeping(options.optimize)
    exporting = options.export
    progress.start("Reading checkpoint")
    checkpoint = open_model(model, exporting, progress)
    options.engine.require_context(longest_context(stated_context(checkpoint.config), options.optimize))
    with new_artifact(output, overwrite=overwrite) as staging:
        captured = capture_model(checkpoint, exporting, progress)
        graph, portable, optimizing = captured.model, captured.manifest, options.optimize
        context = max_context(portable.model, optimizing)
        capabilities = find_capabilities(installed=optimizing.installed_runtime)
        if optimizing.keep_quantization:
            require_kept_numbers(graph, portable, optimizing, capabilities, progress)
        checkpoint.write_assets(staging)
        skipped = write_golden(captured, staging, exporting, progress, context)
        with chosen_numbers(
            graph, portable, optimizing, capabilities, staging, progress, weights=exporting.weights
        ) as numbers:
            outcomes = _optimize(graph, portable.model, optimizing, capabilities, numbers, staging, progress)
            _write(graph, staging, progress, weights=exporting.weights)
        target = _target_manifest(portable, graph, optimizing, outcomes, numbers)
        refused = write_genai_config(staging, target)
        manifest = _build(staging, target, options.engine, options.threads, progress)
        manifest, verification = measure_and_record(staging, manifest, progress, options.optimize.max_kl)
    return CompileReport(manifest, tuple(outcomes), refused, verification=verification, skipped=skipped)


def verify(
    directory: Path, *, threads: int | None = None, max_kl: float | None = None, progress: Progress = NO_PROGRESS
) -> VerifyReport:
    """Measure each graph of an artifact that runs here against its golden data.

    Args:
        directory: Any artifact.
        threads: Threads to compute with; None: what it was built for, else one per physical core.
        max_kl: Largest mean KL divergence that passes, nats; None: any that is tolerated.
        progress: Told how far it is.

    Raises:
        UsageError: it carries no golden data, or ``max_kl`` is no divergence.
        ArtifactError: the artifact is damaged.
    """
    require_divergence(max_kl)
    artifact = open_artifact(directory)
    progress.start("Checking files")
    artifact.check_hashes()
    golden = load_golden(directory)
    if golden is None:
        raise UsageError(f"{directory} carries no golden data; compile it again with --verify on")
    found = measure_graphs(directory, artifact.manifest, golden, threads=threads, progress=progress)
    return report(artifact.manifest, found, artifact.manifest.tolerances, max_kl)


def _open_input(directory: Path, kind: ArtifactKind, takes: str) -> Manifest:
    """The manifest of an artifact of this kind that has its weights."""
    manifest = open_artifact(directory).manifest
    if manifest.kind != kind:
        raise UsageError(f"{directory} holds the {manifest.kind} graph; {takes}")
    if not (directory / DATA).exists():
        raise ArtifactError(f"{directory} was made without weights ({DATA}); export the model again with them")
    return manifest


def _require_golden_within(context: int, directory: Path) -> None:
    """Refuse a context in which nothing of the artifact's golden data fits: no engine of it could be compared."""
    golden = load_golden(directory)
    shortest = 0 if golden is None else int(golden.lengths.min())
    if shortest >= context:
        raise UsageError(
            f"--context {context} holds none of the prompts that {directory} brings to compare engines by; give at "
            f"least {shortest + 1}, or make the engine in one go with llmc compile"
        )


def _optimize(
    model: ir.Model,
    geometry: ModelGeometry,
    options: OptimizeOptions,
    capabilities: Capabilities,
    numbers: Numbers,
    directory: Path,
    progress: Progress,
    ledger: Ledger | None = None,
) -> list[PassOutcome]:
    """Run the target's passes; ``directory`` may hold golden data, whose ranges of keys and values are used."""
    passes = target_passes(geometry, options, capabilities, load_golden(directory), numbers)
    outcomes = run_passes(model, passes, dump=options.dump, observer=ledger, progress=progress)
    shortfalls = [sentence for outcome in outcomes for sentence in outcome.shortfalls]
    if options.strict and shortfalls:
        more = f" (and {len(shortfalls) - 3} more)" if len(shortfalls) > 3 else ""
        raise FusionContractError("; ".join(shortfalls[:3]) + more)
    return outcomes


def _target_manifest(
    portable: Manifest, model: ir.Model, options: OptimizeOptions, outcomes: list[PassOutcome], numbers: Numbers
) -> Manifest:
    plan = make_plan(options)
    target = replace(
        portable,
        kind="target",
        target=options.target,
        precision=options.precision,
        contract=merge_contract(portable.contract, outcomes),
        max_context=max_context(portable.model, options),
        weight_bytes=read_bytes(model.graph),
        passes=(*portable.passes, *(outcome.record for outcome in outcomes)),
        tolerances={},
        measured={},
        files={},
        tools=tool_versions(),
        plan=plan,
        effort=numbers.effort if plan else None,
        stored={name: count for outcome in outcomes for name, count in outcome.stored.items()},
    )
    if not target.as_asked:
        log.warning("--precision %s: no weight is stored so (%s)", target.precision, target.stored_text)
    return target


def _build(
    staging: Path, target: Manifest, options: EngineOptions, threads: int | None, progress: Progress
) -> Manifest:
    progress.start("Building engine")
    options.require_target(target.target)
    engine, rewritten = get_engine(get_target(target.target).runtime), None
    if passes := engine_passes(target):
        model = read_model(staging / GRAPH)
        outcomes = run_passes(model, passes)
        target = replace(
            target,
            contract=merge_contract(target.contract, outcomes),
            passes=(*target.passes, *(outcome.record for outcome in outcomes)),
        )
        rewritten = staging / ENGINE_GRAPH
        onnx.save_model(ir.to_proto(model), rewritten)
    built = engine.build(
        BuildRequest(
            staging / GRAPH, rewritten, staging, options, threads, target.max_context, target.precision, progress
        )
    )
    record = EngineRecord(engine.name, threads, dict(built.details), built.graph.name)
    return write_manifest(
        staging, replace(target, kind="engine", engine=record, measured={}, tolerances={}, files={})
    )


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
