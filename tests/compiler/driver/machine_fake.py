"""A machine that has what a test says, and artifacts that are measured on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import VerifyReport
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.base.targets import get_target
from llmc.compiler.driver import measured_artifact
from llmc.compiler.driver.measured_artifact import MeasuredGraph, measure_and_record, measure_graphs, report
from llmc.compiler.driver.verification import Measured
from llmc.runtimes.onnxruntime import cpu_engine as onnxruntime_cpu_engine
from llmc.runtimes.onnxruntime import cuda_engine as onnxruntime_cuda_engine
from llmc.runtimes.onnxruntime.cpu_engine import OnnxRuntimeCpu
from llmc.runtimes.openvino.engine import OpenVino
from llmc.runtimes.tensorrt import engine as tensorrt_engine

GOLDEN = cast(Golden, object())


@dataclass
class Machine:
    """What is there, what was opened on it, and what comes out.

    Attributes:
        gpus: CUDA devices.
        refusal: What opening the artifact itself raises.
        graph_refusal: What opening the graph that stands in raises.
        manifest: Of the artifact that is opened.
        kernels: Why the CPU engine's own graph does not run here; empty: it does.
        by_graph: Errors of the graphs of an engine for the CPU, where they have others.
        opened: In order: ``itself``, ``graph``, ``host``; of an engine for the CPU its graphs.
        threads: What the last one was opened with.
        closed: Sessions that were closed.
        measured: Errors that every session has; or what measuring raises.
        written: Manifests that were written.
    """

    gpus: int = 0
    refusal: Exception | None = None
    graph_refusal: Exception | None = None
    manifest: Manifest | None = None
    kernels: str = ""
    by_graph: dict[str, Measured] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    threads: int | None = None
    closed: int = 0
    measured: Measured | Exception = field(default_factory=lambda: Measured(0.02, 1e-4, 1.0))
    written: list[Manifest] = field(default_factory=list)

    def close(self) -> None:
        self.closed += 1

    def open(self, name: str) -> Callable[..., Machine]:
        def opening(directory: Path, *, threads: int | None = None, every: bool = False) -> Machine:
            refusal = {"itself": self.refusal, "graph": self.graph_refusal}.get(name)
            if refusal is not None:
                raise refusal
            self.opened.append(name)
            self.threads = threads
            return self

        return opening

    def open_cpu(self, directory: Path, manifest: Manifest, threads: int | None, graph: str) -> Any:
        if graph == "engine.onnx" and self.kernels:
            raise onnxruntime_cpu_engine._GraphUnavailable(self.kernels)
        own = manifest.engine is not None and manifest.engine.runtime == "onnxruntime-cpu"
        if own and graph == "model.onnx" and self.graph_refusal is not None:
            raise self.graph_refusal
        self.open("itself")(directory, threads=threads)
        self.opened[-1] = graph if own else "itself"
        return self, f"operators of {graph}"

    def write(self, directory: Path, manifest: Manifest) -> Manifest:
        self.written.append(manifest)
        return manifest

    def measure(self, session: Any, golden: Golden, windows: Sequence[int | None]) -> Measured:
        assert session is self
        assert list(windows) == [None, 512, None]
        if isinstance(self.measured, Exception):
            raise self.measured
        return self.by_graph.get(self.opened[-1], self.measured)


def install(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put a machine in the place of this one."""
    made = Machine()
    for module in (measured_artifact, onnxruntime_cuda_engine, tensorrt_engine):
        monkeypatch.setattr(module, "cuda_devices", lambda: ["gpu"] * made.gpus)
    for module in (onnxruntime_cpu_engine, onnxruntime_cuda_engine):
        monkeypatch.setattr(module, "open_artifact", lambda directory: SimpleNamespace(manifest=made.manifest))
    monkeypatch.setattr(OnnxRuntimeCpu, "_open", lambda _, *given: made.open_cpu(*given))
    for kind in (onnxruntime_cuda_engine.OnnxRuntimeCuda, tensorrt_engine.TensorRT, OpenVino):
        monkeypatch.setattr(kind, "open", lambda _, *given, **threads: made.open("itself")(*given, **threads))
    monkeypatch.setattr(measured_artifact, "measure", made.measure)
    monkeypatch.setattr(measured_artifact, "load_golden", lambda directory: GOLDEN)
    monkeypatch.setattr(measured_artifact, "write_manifest", made.write)
    monkeypatch.setattr(tensorrt_engine, "open_graph", made.open("graph"))
    monkeypatch.setattr(onnxruntime_cuda_engine, "open_on_host", made.open("host"))
    return made


def graph(manifest: Manifest, target: str, precision: str = "fp16") -> Manifest:
    return replace(manifest, kind="target", engine=None, target=target, precision=precision)


def engine(manifest: Manifest, target: Any) -> Manifest:
    assert manifest.engine is not None
    record = replace(manifest.engine, runtime=get_target(target).runtime)
    return replace(manifest, target=target, precision="fp16", engine=record)


def own_operators(manifest: Manifest) -> Manifest:
    """An engine for the CPU whose graph has llmc's own operators."""
    made = engine(manifest, "cpu")
    assert made.engine is not None
    plan = {"linear": "int4@64", "head": "int8@32"}
    return replace(made, precision="int4", plan=plan, engine=replace(made.engine, details={"kernels": "llmc.cpu"}))


def measured_graphs(machine: Machine, manifest: Manifest, **threads: Any) -> list[MeasuredGraph]:
    machine.manifest = manifest
    return measure_graphs(Path(), manifest, GOLDEN, **threads)


def remark(machine: Machine, manifest: Manifest) -> str:
    """Of the one graph that ran."""
    (found,) = measured_graphs(machine, manifest)
    assert found.errors == machine.measured
    assert found.run.session is None, "it is closed"
    return found.run.remark


def verified(machine: Machine, manifest: Manifest, max_kl: float | None = None) -> VerifyReport:
    return report(manifest, measured_graphs(machine, manifest), manifest.tolerances, max_kl)


def recorded(machine: Machine, manifest: Manifest, max_kl: float | None = None) -> Any:
    machine.manifest = manifest
    return measure_and_record(Path(), manifest, NoProgress(), max_kl)
