"""What is run to measure an artifact: itself, or its graph on the CPU where its own runtime cannot run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError, MissingDependencyError, VerificationError
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.base.targets import get_target
from llmc.compiler.driver import measured_artifact
from llmc.compiler.driver.measured_artifact import measure_and_record, measure_anywhere
from llmc.compiler.driver.verification import KL, LOGIT_ERROR, TOP1, Measured
from llmc.runtimes.onnxruntime import cuda_engine as onnxruntime_cuda_engine
from llmc.runtimes.onnxruntime.cpu_engine import OnnxRuntimeCpu
from llmc.runtimes.openvino.engine import OpenVino
from llmc.runtimes.tensorrt import engine as tensorrt_engine

GOLDEN = cast(Golden, object())
CPU = "ONNX Runtime's CPU provider"


@dataclass
class Machine:
    """What is there, what was opened on it, and what comes out.

    Attributes:
        gpus: CUDA devices.
        refusal: What opening the artifact itself raises.
        graph_refusal: What opening the graph that stands in raises.
        opened: In order: ``itself``, ``graph``, ``host``.
        threads: What the last one was opened with.
        closed: Sessions that were closed.
        measured: Errors that every session has; or what measuring raises.
        written: Manifests that were written.
    """

    gpus: int = 0
    refusal: Exception | None = None
    graph_refusal: Exception | None = None
    opened: list[str] = field(default_factory=list)
    threads: int | None = None
    closed: int = 0
    measured: Measured | Exception = field(default_factory=lambda: Measured(0.02, 1e-4, 1.0))
    written: list[Manifest] = field(default_factory=list)

    def close(self) -> None:
        self.closed += 1

    def open(self, name: str) -> Callable[..., Machine]:
        def opening(directory: Path, *, threads: int | None = None) -> Machine:
            refusal = {"itself": self.refusal, "graph": self.graph_refusal}.get(name)
            if refusal is not None:
                raise refusal
            self.opened.append(name)
            self.threads = threads
            return self

        return opening

    def write(self, directory: Path, manifest: Manifest) -> Manifest:
        self.written.append(manifest)
        return manifest

    def measure(self, session: Any, golden: Golden) -> Measured:
        assert session is self
        if isinstance(self.measured, Exception):
            raise self.measured
        return self.measured


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    for module in (measured_artifact, onnxruntime_cuda_engine, tensorrt_engine):
        monkeypatch.setattr(module, "cuda_devices", lambda: ["gpu"] * made.gpus)
    for kind in (OnnxRuntimeCpu, onnxruntime_cuda_engine.OnnxRuntimeCuda, tensorrt_engine.TensorRT, OpenVino):
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


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_engines_for_the_cpu_run_themselves(machine: Machine, manifest: Manifest, target: str) -> None:
    measured, where = measure_anywhere(Path(), engine(manifest, target), GOLDEN)
    assert (measured, where, machine.opened, machine.closed) == (machine.measured, "", ["itself"], 1)


@pytest.mark.parametrize("target", ["cpu", "openvino", "tensorrt", "tensorrt-rtx"])
def test_graphs_run_themselves(machine: Machine, manifest: Manifest, target: str) -> None:
    assert measure_anywhere(Path(), graph(manifest, target), GOLDEN)[1] == ""
    assert machine.opened == ["itself"]


@pytest.mark.parametrize(
    ("target", "opened", "where"),
    [
        ("cuda", "host", f"its graph on {CPU}: there is no GPU here"),
        ("tensorrt", "graph", f"the graph it was built of, on {CPU}: there is no GPU here"),
        ("tensorrt-rtx", "graph", f"the graph it was built of, on {CPU}: there is no GPU here"),
    ],
)
def test_without_a_gpu(machine: Machine, manifest: Manifest, target: str, opened: str, where: str) -> None:
    assert measure_anywhere(Path(), engine(manifest, target), GOLDEN)[1] == where
    assert (machine.opened, machine.closed) == ([opened], 1)


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_with_a_gpu(machine: Machine, manifest: Manifest, target: str) -> None:
    machine.gpus = 1
    assert measure_anywhere(Path(), engine(manifest, target), GOLDEN)[1] == ""
    assert machine.opened == ["itself"]


@pytest.mark.parametrize("error", [EngineError("compute capability 9.0"), MissingDependencyError("no tensorrt")])
def test_a_gpu_that_tensorrt_does_not_support(
    machine: Machine, manifest: Manifest, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machine.gpus, machine.refusal = 1, error
    with caplog.at_level(logging.WARNING):
        where = measure_anywhere(Path(), engine(manifest, "tensorrt-rtx"), GOLDEN)[1]
    assert where == f"the graph it was built of, on {CPU}: no GPU here that it supports"
    assert machine.opened == ["graph"]
    assert f"the engine does not open here: {error}" in caplog.text


def test_a_cuda_engine_that_does_not_open_is_an_error(machine: Machine, manifest: Manifest) -> None:
    machine.gpus, machine.refusal = 1, EngineError("out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        measure_anywhere(Path(), engine(manifest, "cuda"), GOLDEN)


@pytest.mark.parametrize(("gpus", "target"), [(0, "cpu"), (1, "cuda"), (0, "tensorrt"), (1, "tensorrt-rtx")])
@pytest.mark.parametrize("kind", ["graph", "engine"])
def test_threads_are_handed_on(machine: Machine, manifest: Manifest, gpus: int, target: str, kind: str) -> None:
    machine.gpus = gpus
    made = graph(manifest, target) if kind == "graph" else engine(manifest, target)
    measure_anywhere(Path(), made, GOLDEN, threads=3)
    assert machine.threads == 3


def test_where_neither_runs_both_reasons_are_said(machine: Machine, manifest: Manifest) -> None:
    machine.graph_refusal = EngineError("no kernel for bfloat16. Op with name (a) and many more words.")
    said = r"there is no GPU here, and the CPU does not run the graph .*: no kernel for bfloat16$"
    with pytest.raises(EngineError, match=said):
        measure_anywhere(Path(), engine(manifest, "tensorrt"), GOLDEN)


def test_a_session_is_closed_when_measuring_fails(machine: Machine, manifest: Manifest) -> None:
    machine.measured = VerificationError("another vocabulary")
    with pytest.raises(VerificationError):
        measure_anywhere(Path(), graph(manifest, "openvino"), GOLDEN)
    assert machine.closed == 1


def test_what_is_measured_is_recorded_with_tolerances(machine: Machine, manifest: Manifest) -> None:
    recorded, report = measure_and_record(Path(), engine(manifest, "tensorrt"), NoProgress())
    assert recorded.measured == {LOGIT_ERROR: 0.02, KL: 1e-4, TOP1: 1.0}
    assert recorded.tolerances[LOGIT_ERROR] == pytest.approx(0.02 * 1.25 + 1e-3)
    assert report is not None
    assert report.passed
    assert "there is no GPU here" in report.where
    assert machine.written == [recorded]


def test_a_cuda_graph_is_measured_when_it_is_an_engine(machine: Machine, manifest: Manifest) -> None:
    made = graph(manifest, "cuda")
    assert measure_and_record(Path(), made, NoProgress()) == (made, None)
    assert (machine.opened, machine.written) == ([], [])
    assert measure_and_record(Path(), engine(manifest, "cuda"), NoProgress())[1] is not None


def rounded(manifest: Manifest, precision: str, to: Any) -> Manifest:
    """An engine whose weights went through a float type."""
    return replace(manifest, precision=precision, contract=Contract(rounded_to=to))


@pytest.mark.parametrize(
    ("precision", "to", "limit"),
    [("fp32", "fp16", 0.026), ("fp32", "bf16", 0.026), ("fp32", None, None), ("int4", "fp16", 0.026)],
)
def test_weights_rounded_to_half_precision_are_not_held_to_float32s_tolerances(
    machine: Machine, manifest: Manifest, precision: str, to: str | None, limit: float | None
) -> None:
    made = rounded(manifest, precision, to)
    if limit is None:
        with pytest.raises(VerificationError, match=r"largest logit error is 0\.02, 0\.001 is accepted"):
            measure_and_record(Path(), made, NoProgress())
        assert machine.written == []
    else:
        recorded, _ = measure_and_record(Path(), made, NoProgress())
        assert recorded.tolerances[LOGIT_ERROR] == pytest.approx(limit)


def test_int4s_weights_have_int4s_limit_whatever_their_scales_were_rounded_to(
    machine: Machine, manifest: Manifest
) -> None:
    machine.measured = Measured(0.02, 0.5, 1.0)
    assert measure_and_record(Path(), rounded(manifest, "int4", "fp16"), NoProgress())[1] is not None
    with pytest.raises(VerificationError, match=r"mean KL divergence is 0\.5, 0\.1 is accepted"):
        measure_and_record(Path(), rounded(manifest, "fp32", "fp16"), NoProgress())


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_cuda_engine_that_fails_while_it_runs_is_an_error_where_its_gpu_is(
    machine: Machine, manifest: Manifest, gpus: int
) -> None:
    machine.gpus, machine.measured = gpus, EngineError("q_norm_weight is not supported")
    made = engine(manifest, "cuda")
    if gpus:
        with pytest.raises(EngineError, match="q_norm_weight"):
            measure_and_record(Path(), made, NoProgress())
    else:
        assert measure_and_record(Path(), made, NoProgress()) == (made, None)
    assert machine.closed == 1


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_types_without_a_kernel_on_the_cpu_leave_a_tensorrt_graph_unmeasured(
    machine: Machine, manifest: Manifest, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine.refusal = EngineError("no kernel for bfloat16")
    made = graph(manifest, target, "bf16")
    with caplog.at_level(logging.WARNING):
        assert measure_and_record(Path(), made, NoProgress()) == (made, None)
    assert "not compared with the model" in caplog.text
    assert "no kernel for bfloat16" in caplog.text


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_a_cpu_graph_that_does_not_run_is_an_error(machine: Machine, manifest: Manifest, target: str) -> None:
    machine.refusal = EngineError("no kernel")
    with pytest.raises(EngineError, match="no kernel"):
        measure_and_record(Path(), graph(manifest, target, "fp32"), NoProgress())


def test_logits_that_are_not_finite_are_refused(machine: Machine, manifest: Manifest) -> None:
    machine.measured = Measured(float("inf"), float("inf"), 0.0)
    with pytest.raises(
        VerificationError, match=r"the target does not say what the model says: .* nothing was written"
    ):
        measure_and_record(Path(), graph(manifest, "tensorrt-rtx", "int4"), NoProgress())
