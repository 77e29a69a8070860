"""The engines by name, the one that builds a target's graph, and the one that an artifact asks for.

In: a manifest or an artifact directory. Out: an engine, or an open session.
"""

from __future__ import annotations

from pathlib import Path

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import EngineOptions
from llmc.compiler.base.progress import Progress
from llmc.compiler.base.targets import TARGETS, get_target
from llmc.runtimes.session.engine import Engine, Session


def get_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        EngineError: there is none.
    """
    if name == "onnxruntime-cpu":
        from llmc.runtimes.onnxruntime.cpu_engine import OnnxRuntimeCpu

        return OnnxRuntimeCpu()
    if name == "onnxruntime-cuda":
        from llmc.runtimes.onnxruntime.cuda_engine import OnnxRuntimeCuda

        return OnnxRuntimeCuda()
    if name in {"tensorrt", "tensorrt-rtx"}:
        from llmc.runtimes.tensorrt.engine import TensorRT, TensorRTRtx

        return TensorRT() if name == "tensorrt" else TensorRTRtx()
    if name == "openvino-cpu":
        from llmc.runtimes.openvino.engine import OpenVino

        return OpenVino()
    raise EngineError(f"no engine is called {name}; there are {', '.join(row.runtime for row in TARGETS)}")


def require_builder(target: str) -> None:
    """Say early that a target's runtime is not installed.

    Raises:
        MissingDependencyError: it is not.
    """
    if target in {"tensorrt", "tensorrt-rtx"}:
        from llmc.runtimes.tensorrt.bindings import require_installed

        require_installed(target)
    elif target == "openvino":
        from llmc.runtimes.openvino.library import load_openvino

        load_openvino()


def make_builder(target: Manifest, options: EngineOptions, progress: Progress) -> Engine:
    """The engine that builds a target's graph, as it was asked for.

    Raises:
        UsageError: the options are not for this target, or do not fit its graph.
    """
    options.require_target(str(target.target))
    row = get_target(str(target.target))
    if not row.takes_sizes:
        return get_engine(row.runtime)
    from llmc.runtimes.memory.capacity_plan import BuildOptions
    from llmc.runtimes.tensorrt.engine import TensorRT, TensorRTRtx

    build = BuildOptions(options, target.max_context, target.precision)
    return TensorRT(build, progress) if target.target == "tensorrt" else TensorRTRtx(build, progress)


def open_session(directory: Path, *, threads: int | None = None) -> Session:
    """Open an engine, a target graph or a portable graph with the runtime that its manifest names.

    Raises:
        ArtifactError: the directory is no artifact, or is damaged.
        EngineError: the runtime refuses it.
    """
    return get_engine(runtime_of(open_artifact(directory).manifest)).open(directory, threads=threads)


def runtime_of(manifest: Manifest) -> str:
    """The runtime that opens an artifact: the engine's own, the target's, or ONNX Runtime on the CPU."""
    if manifest.engine is not None:
        return manifest.engine.runtime
    target = get_target(manifest.target or "cpu")
    return "onnxruntime-cpu" if target.runs_on_ort_cpu else target.runtime
