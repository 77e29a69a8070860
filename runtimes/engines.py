"""The engines by name, and the one that an artifact asks for.

In: a manifest or an artifact directory. Out: an engine, or an open session.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.targets import get_target
from llmc.runtimes.session.engine import Engine, Session
from llmc.runtimes.session.operator_times import EndProfile

ENGINES: Mapping[str, tuple[str, str]] = {
    "onnxruntime-cpu": ("llmc.runtimes.onnxruntime.cpu_engine", "OnnxRuntimeCpu"),
    "onnxruntime-cuda": ("llmc.runtimes.onnxruntime.cuda_engine", "OnnxRuntimeCuda"),
    "tensorrt": ("llmc.runtimes.tensorrt.engine", "TensorRT"),
    "tensorrt-rtx": ("llmc.runtimes.tensorrt.engine", "TensorRTRtx"),
    "openvino-cpu": ("llmc.runtimes.openvino.engine", "OpenVino"),
}
"""Runtime -> module and class of its engine, which are imported when it is asked for."""


def get_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        EngineError: there is none.
    """
    if name not in ENGINES:
        raise EngineError(f"no engine is called {name}; there are {', '.join(ENGINES)}")
    module, kind = ENGINES[name]
    engine: Engine = getattr(importlib.import_module(module), kind)()
    return engine


def open_session(directory: Path, *, threads: int | None = None) -> Session:
    """Open an engine, a target graph or a portable graph with the runtime that its manifest names.

    Raises:
        ArtifactError: the directory is no artifact, or is damaged.
        EngineError: the runtime refuses it.
    """
    return get_engine(runtime_of(open_artifact(directory).manifest)).open(directory, threads=threads)


def open_profiled(directory: Path, *, threads: int | None = None, folder: Path) -> tuple[Session, EndProfile]:
    """As :func:`open_session`, with the runtime's profiler on; it may write in ``folder`` until the profile ends.

    Raises:
        EngineError: the runtime has no profiler that llmc reads.
        LlmcError: as :func:`open_session`.
    """
    engine = get_engine(runtime_of(open_artifact(directory).manifest))
    return engine.open_profiled(directory, threads=threads, folder=folder)


def open_for_evaluation(directory: Path, *, threads: int | None = None) -> tuple[Session, str]:
    """As :func:`open_session`, with every position's logits if possible, or as nearly as can be opened here.

    Returns:
        A session, and one clause that says what it runs where that is not the artifact itself; else empty.

    Raises:
        LlmcError: as :func:`open_session`.
    """
    return get_engine(runtime_of(open_artifact(directory).manifest)).open_for_evaluation(directory, threads=threads)


def runtime_of(manifest: Manifest) -> str:
    """The runtime that opens an artifact: the engine's own, the target's, or ONNX Runtime on the CPU."""
    if manifest.engine is not None:
        return manifest.engine.runtime
    target = get_target(manifest.target)
    return (get_target(None) if target.runs_on_ort_cpu else target).runtime
