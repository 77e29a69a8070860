"""An artifact compared with its golden data, and what came out written into its manifest.

In: a directory with its files written, and its manifest. Out: the manifest with measured errors and tolerances by
graph; a report of the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.golden import Golden, load_golden
from llmc.compiler.artifact.loss import KL, loss_of
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import Check, GraphChecks, VerifyReport
from llmc.compiler.base.errors import EngineError, VerificationError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.base.targets import get_target
from llmc.compiler.driver.first_run import run_once
from llmc.compiler.driver.verification import Measured, checks, limits, measure, tolerances
from llmc.compiler.quantization.remedy import remedy
from llmc.runtimes.device.cuda import cuda_devices
from llmc.runtimes.engines import get_engine, runtime_of
from llmc.runtimes.session.engine import GraphRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredGraph:
    """A graph of an artifact as it ran here, and its errors; None where it did not run."""

    run: GraphRun
    errors: Measured | None


def measure_and_record(
    staging: Path, manifest: Manifest, progress: Progress, max_kl: float | None = None
) -> tuple[Manifest, VerifyReport | None]:
    """Compare with golden data where there is some; what was measured and what is tolerated go into the manifest.

    An engine without golden data runs once, and is compared with nothing.

    Raises:
        EngineError: a graph does not run.
        VerificationError: a graph does not say what the model says, or more was lost than ``max_kl``, or there is
            such a limit and nothing to compare with.
    """
    golden = load_golden(staging)
    # A graph that only its own runtime runs is measured when it is built.
    if golden is None or (manifest.kind == "target" and not get_target(manifest.target).runs_on_ort_cpu):
        _require_no_limit(max_kl, "there are no golden data" if golden is None else "it is measured when it is built")
        if manifest.kind == "engine":
            _run_once(staging, manifest, progress)
        return manifest, None
    try:
        found = measure_graphs(staging, manifest, golden, progress=progress)
    except EngineError as error:
        # Some of the CPU provider's kernels refuse an input only when they run.
        if not _may_be_unmeasured(manifest):
            raise
        _require_no_limit(max_kl, str(error))
        log.warning("not compared with the model: there is no GPU here, and the CPU does not run it (%s)", error)
        return manifest, None
    precision = _weight_precision(manifest)
    measured = {graph.run.graph: graph.errors for graph in found if graph.errors is not None}
    accepted = {graph: tolerances(precision, errors) for graph, errors in measured.items()}
    known = {graph: errors.to_mapping() for graph, errors in measured.items()}
    result = report(manifest, found, accepted, max_kl)
    if not result.passed:
        failed = next(check for check in result.checks if not check.passed)
        further = f"; {result.remedy}" if result.remedy else ""
        raise VerificationError(
            f"the {manifest.kind} does not say what the model says: {failed.name} is {failed.measured:.3g}, "
            f"{failed.tolerance:.3g} is accepted; nothing was written{further}"
        )
    return write_manifest(staging, replace(manifest, measured=known, tolerances=accepted, files={})), result


def measure_graphs(
    directory: Path,
    manifest: Manifest,
    golden: Golden,
    *,
    threads: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> list[MeasuredGraph]:
    """Measure each graph of an artifact that runs here, with its own runtime or with what stands in for it.

    Raises:
        EngineError: none runs.
        VerificationError: the vocabulary is another one.
    """
    found, windows = [], manifest.model.sliding_windows
    progress.start("Verifying")
    for run in get_engine(runtime_of(manifest)).open_each(directory, threads=threads):
        if run.session is None:
            found.append(MeasuredGraph(run, None))
            continue
        progress.start(f"Verifying {run.graph}")
        try:
            found.append(MeasuredGraph(replace(run, session=None), measure(run.session, golden, windows)))
        finally:
            run.session.close()
    return found


def report(
    manifest: Manifest,
    found: Sequence[MeasuredGraph],
    accepted: Mapping[str, Mapping[str, float]],
    max_kl: float | None = None,
) -> VerifyReport:
    """Measured graphs against what is accepted of each, and what the artifact lost, whatever is accepted."""
    fixed = limits(_weight_precision(manifest))
    graphs = [
        GraphChecks(
            graph.run.graph,
            graph.run.operators,
            () if graph.errors is None else checks(graph.errors, accepted.get(graph.run.graph, fixed)),
            graph.run.remark,
        )
        for graph in found
    ]
    measured = {graph.run.graph: graph.errors.to_mapping() for graph in found if graph.errors is not None}
    loss = loss_of(measured)
    most = None if loss is None or max_kl is None else Check(f"{KL} (--max-kl)", loss.kl, max_kl)
    lost = loss is not None and (loss.warns or (most is not None and not most.passed))
    readable = "tokenizer.json" in manifest.files  # without a tokenizer no text calibrates
    effort = manifest.effort if readable else None
    cure = remedy(manifest.target, manifest.precision, manifest.plan, effort) if lost else ""
    return VerifyReport(tuple(graphs), loss, cure, most)


def _run_once(staging: Path, manifest: Manifest, progress: Progress) -> None:
    try:
        run_once(staging, manifest, progress)
    except EngineError as error:
        if not _may_be_unmeasured(manifest):
            raise
        log.warning("the engine was not run: there is no GPU here, and the CPU does not run it (%s)", error)


def _require_no_limit(max_kl: float | None, why: str) -> None:
    if max_kl is not None:
        raise VerificationError(f"--max-kl {max_kl:g} cannot be checked, because {why}; nothing was written")


def _may_be_unmeasured(manifest: Manifest) -> bool:
    """Whether the artifact is for a GPU that may not be here, whose types the CPU may lack kernels for."""
    target = get_target(manifest.target)
    return target.device == "gpu" and (target.runs_on_ort_cpu or not cuda_devices())


def _weight_precision(manifest: Manifest) -> str:
    """Weights that were rounded to half precision stay so, whatever they are computed with."""
    return manifest.contract.rounded_to or "fp32" if manifest.precision == "fp32" else manifest.precision
