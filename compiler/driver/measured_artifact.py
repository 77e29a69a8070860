"""An artifact compared with its golden data, and what came out written into its manifest.

In: a directory with its files written, and its manifest. Out: the manifest with measured errors and tolerances.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.golden import Golden, load_golden
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import VerifyReport
from llmc.compiler.base.errors import EngineError, VerificationError
from llmc.compiler.base.progress import Progress
from llmc.compiler.base.targets import get_target
from llmc.compiler.driver.verification import Measured, measure, report, tolerances
from llmc.runtimes.device.cuda import cuda_devices
from llmc.runtimes.engines import get_engine, runtime_of

log = logging.getLogger(__name__)


def measure_and_record(staging: Path, manifest: Manifest, progress: Progress) -> tuple[Manifest, VerifyReport | None]:
    """Compare with golden data where there is some; what was measured and what is tolerated go into the manifest."""
    golden = load_golden(staging)
    # A graph that only its own runtime runs is measured when it is built.
    if golden is None or (manifest.kind == "target" and not get_target(manifest.target).runs_on_ort_cpu):
        return manifest, None
    progress.start("Verifying")
    try:
        measured, where = measure_anywhere(staging, manifest, golden)
    except EngineError as error:
        # Some of the CPU provider's kernels refuse an input only when they run.
        if not _may_be_unmeasured(manifest):
            raise
        log.warning("not compared with the model: there is no GPU here, and the CPU does not run it (%s)", error)
        return manifest, None
    accepted = tolerances(_weight_precision(manifest), measured)
    result = report(measured, accepted, where)
    if not result.passed:
        failed = next(check for check in result.checks if not check.passed)
        raise VerificationError(
            f"the {manifest.kind} does not say what the model says: {failed.name} is {failed.measured:.3g}, "
            f"{failed.tolerance:.3g} is accepted; nothing was written"
        )
    final = replace(manifest, measured=measured.to_mapping(), tolerances=accepted, files={})
    return write_manifest(staging, final), result


def measure_anywhere(
    directory: Path, manifest: Manifest, golden: Golden, *, threads: int | None = None
) -> tuple[Measured, str]:
    """Measure an artifact with its own runtime or, where that cannot run here, its graph on ONNX Runtime's CPU.

    Returns:
        What was measured, and one clause that says what ran where it was not the artifact itself; else empty.

    Raises:
        EngineError: neither runs.
        VerificationError: the vocabulary is another one.
    """
    session, where = get_engine(runtime_of(manifest)).open_anywhere(directory, threads=threads)
    try:
        return measure(session, golden), where
    finally:
        session.close()


def _may_be_unmeasured(manifest: Manifest) -> bool:
    """Whether the artifact is for a GPU that may not be here, whose types the CPU may lack kernels for."""
    target = get_target(manifest.target)
    return target.device == "gpu" and (target.runs_on_ort_cpu or not cuda_devices())


def _weight_precision(manifest: Manifest) -> str:
    """Weights that were rounded to half precision stay so, whatever they are computed with."""
    return manifest.contract.rounded_to or "fp32" if manifest.precision == "fp32" else manifest.precision
