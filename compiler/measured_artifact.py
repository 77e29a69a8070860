"""An artifact compared with its golden data, and what came out written into its manifest.

In: a directory with its files written, and its manifest. Out: the manifest with measured errors and tolerances.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from llmc.compiler.artifact import write_manifest
from llmc.compiler.errors import EngineError, VerificationError
from llmc.compiler.golden import load_golden
from llmc.compiler.manifest import Manifest
from llmc.compiler.progress import Progress
from llmc.compiler.reports import VerifyReport
from llmc.compiler.verification import measure, report, tolerances
from llmc.passes.convert_float import ConvertFloat
from llmc.runtimes.device.cuda import cuda_devices
from llmc.runtimes.engine import Session
from llmc.runtimes.engines import open_session

log = logging.getLogger(__name__)


def measure_and_record(staging: Path, manifest: Manifest, progress: Progress) -> tuple[Manifest, VerifyReport | None]:
    """Compare with golden data where there is some; what was measured and what is tolerated go into the manifest."""
    golden = load_golden(staging)
    # A GPU's graph takes lengths and device buffers when it is built, and is measured then.
    if golden is None or (manifest.target == "cuda" and manifest.kind == "target"):
        return manifest, None
    progress.start("Verifying")
    try:
        session = _open_for_measuring(staging, manifest)
        try:
            measured = measure(session, golden)
        finally:
            session.close()
    except EngineError as error:
        # Some of the CPU provider's kernels refuse an input only when they run.
        if not _is_elsewhere(manifest):
            raise
        log.warning("not compared with the model: there is no GPU here, and the CPU does not run it (%s)", error)
        return manifest, None
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


def _open_for_measuring(staging: Path, manifest: Manifest) -> Session:
    if not _is_elsewhere(manifest):
        return open_session(staging)
    from llmc.runtimes.onnxruntime_cuda_engine import open_on_host

    return open_on_host(staging)


def _is_elsewhere(manifest: Manifest) -> bool:
    """Whether the artifact is for a GPU, and none is here."""
    return manifest.target == "cuda" and not cuda_devices()


def _weight_precision(manifest: Manifest) -> str:
    """Weights that were rounded to half precision stay so, whatever they are computed with."""
    rounded = any(record.name == ConvertFloat.__name__ and record.counts for record in manifest.passes)
    return "fp16" if rounded and manifest.precision == "fp32" else manifest.precision
