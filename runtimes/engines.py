"""The engines by name, and the one that an artifact asks for.

In: an artifact directory. Out: an open session.
"""

from __future__ import annotations

from pathlib import Path

from llmc.compiler.artifact import open_artifact
from llmc.compiler.errors import EngineError
from llmc.runtimes.engine import Engine, Session

RUNTIME_OF_TARGET = {"cpu": "onnxruntime-cpu", "cuda": "onnxruntime-cuda", None: "onnxruntime-cpu"}
"""Runtime that runs a target's graphs; a portable graph (no target) runs on ONNX Runtime."""


def get_engine(name: str) -> Engine:
    """The engine called ``name``.

    Raises:
        EngineError: there is none.
    """
    if name == "onnxruntime-cpu":
        from llmc.runtimes.onnxruntime_engine import OnnxRuntimeCpu

        return OnnxRuntimeCpu()
    if name == "onnxruntime-cuda":
        from llmc.runtimes.onnxruntime_cuda_engine import OnnxRuntimeCuda

        return OnnxRuntimeCuda()
    raise EngineError(f"no engine is called {name}; there are onnxruntime-cpu and onnxruntime-cuda")


def open_session(directory: Path, *, threads: int | None = None) -> Session:
    """Open an engine, a target graph or a portable graph with the runtime that its manifest names.

    Raises:
        ArtifactError: the directory is no artifact, or is damaged.
        EngineError: the runtime refuses it.
    """
    manifest = open_artifact(directory).manifest
    name = (
        manifest.engine.runtime if manifest.engine else RUNTIME_OF_TARGET.get(manifest.target, str(manifest.target))
    )
    return get_engine(name).open(directory, threads=threads)
