"""What is run to measure an artifact: itself, or its graph on the CPU where its own runtime cannot run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError, MissingDependencyError, VerificationError
from llmc.compiler.driver.verification import KL, LOGIT_ERROR, TOP1, Measured

from .machine_fake import Machine, engine, graph, install, measured_graphs, own_operators, recorded, remark

CPU = "ONNX Runtime's CPU provider"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return install(monkeypatch)


@pytest.mark.parametrize(("target", "opened"), [("cpu", "model.onnx"), ("openvino", "itself")])
def test_engines_for_the_cpu_run_themselves(machine: Machine, manifest: Manifest, target: str, opened: str) -> None:
    assert remark(machine, engine(manifest, target)) == ""
    assert (machine.opened, machine.closed) == ([opened], 1)


def test_both_graphs_of_an_engine_with_own_operators_run(machine: Machine, manifest: Manifest) -> None:
    """Each with errors of its own."""
    machine.by_graph = {"engine.onnx": Measured(0.1, 0.01, 0.9), "model.onnx": Measured(0.2, 0.02, 0.8)}
    found = measured_graphs(machine, own_operators(manifest))
    assert [(item.run.graph, item.run.operators, item.errors) for item in found] == [
        (graph, f"operators of {graph}", errors) for graph, errors in machine.by_graph.items()
    ]
    assert (machine.opened, machine.closed) == (["engine.onnx", "model.onnx"], 2)


def test_without_kernels_the_other_graph_runs_alone_and_says_why(machine: Machine, manifest: Manifest) -> None:
    machine.kernels = "no C compiler is installed"
    own, plain = measured_graphs(machine, own_operators(manifest))
    assert (own.run.graph, own.errors, own.run.remark) == ("engine.onnx", None, "no C compiler is installed")
    assert (plain.run.graph, plain.errors, plain.run.remark) == ("model.onnx", machine.measured, "")
    assert machine.closed == 1


def test_a_plain_graph_that_is_refused_is_said_where_the_engines_own_runs(
    machine: Machine, manifest: Manifest
) -> None:
    machine.graph_refusal = EngineError("no such operator")
    own, plain = measured_graphs(machine, own_operators(manifest))
    assert (own.errors, plain.errors, plain.run.remark) == (machine.measured, None, "no such operator")
    machine.kernels = "no C compiler is installed"
    with pytest.raises(EngineError, match="no such operator"):
        measured_graphs(machine, own_operators(manifest))


@pytest.mark.parametrize("target", ["cpu", "openvino", "tensorrt", "tensorrt-rtx"])
def test_graphs_run_themselves(machine: Machine, manifest: Manifest, target: str) -> None:
    assert remark(machine, graph(manifest, target)) == ""
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
    assert remark(machine, engine(manifest, target)) == where
    assert (machine.opened, machine.closed) == ([opened], 1)


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_with_a_gpu(machine: Machine, manifest: Manifest, target: str) -> None:
    machine.gpus = 1
    assert remark(machine, engine(manifest, target)) == ""
    assert machine.opened == ["itself"]


@pytest.mark.parametrize("error", [EngineError("compute capability 9.0"), MissingDependencyError("no tensorrt")])
def test_a_gpu_that_tensorrt_does_not_support(
    machine: Machine, manifest: Manifest, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    machine.gpus, machine.refusal = 1, error
    with caplog.at_level(logging.WARNING):
        where = remark(machine, engine(manifest, "tensorrt-rtx"))
    assert where == f"the graph it was built of, on {CPU}: no GPU here that it supports"
    assert machine.opened == ["graph"]
    assert f"the engine does not open here: {error}" in caplog.text


def test_a_cuda_engine_that_does_not_open_is_an_error(machine: Machine, manifest: Manifest) -> None:
    machine.gpus, machine.refusal = 1, EngineError("out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        measured_graphs(machine, engine(manifest, "cuda"))


@pytest.mark.parametrize(("gpus", "target"), [(0, "cpu"), (1, "cuda"), (0, "tensorrt"), (1, "tensorrt-rtx")])
@pytest.mark.parametrize("kind", ["graph", "engine"])
def test_threads_are_handed_on(machine: Machine, manifest: Manifest, gpus: int, target: str, kind: str) -> None:
    machine.gpus = gpus
    made = graph(manifest, target) if kind == "graph" else engine(manifest, target)
    measured_graphs(machine, made, threads=3)
    assert machine.threads == 3


def test_where_neither_runs_both_reasons_are_said(machine: Machine, manifest: Manifest) -> None:
    machine.graph_refusal = EngineError("no kernel for bfloat16. Op with name (a) and many more words.")
    said = r"there is no GPU here, and the CPU does not run the graph .*: no kernel for bfloat16$"
    with pytest.raises(EngineError, match=said):
        measured_graphs(machine, engine(manifest, "tensorrt"))


def test_a_session_is_closed_when_measuring_fails(machine: Machine, manifest: Manifest) -> None:
    machine.measured = VerificationError("another vocabulary")
    with pytest.raises(VerificationError):
        measured_graphs(machine, graph(manifest, "openvino"))
    assert machine.closed == 1


def test_what_is_measured_is_recorded_with_tolerances(machine: Machine, manifest: Manifest) -> None:
    made, result = recorded(machine, engine(manifest, "tensorrt"))
    assert made.measured == {"model.onnx": {LOGIT_ERROR: 0.02, KL: 1e-4, TOP1: 1.0}}
    assert made.tolerances["model.onnx"][LOGIT_ERROR] == pytest.approx(0.02 * 1.25 + 1e-3)
    assert result.passed
    assert "there is no GPU here" in result.graphs[0].remark
    assert machine.written == [made]


def test_a_cuda_graph_is_measured_when_it_is_an_engine(machine: Machine, manifest: Manifest) -> None:
    made = graph(manifest, "cuda")
    assert recorded(machine, made) == (made, None)
    assert (machine.opened, machine.written) == ([], [])
    assert recorded(machine, engine(manifest, "cuda"))[1] is not None


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
            recorded(machine, made)
        assert machine.written == []
    else:
        kept, _ = recorded(machine, made)
        assert kept.tolerances["model.onnx"][LOGIT_ERROR] == pytest.approx(limit)


def test_int4s_weights_have_int4s_limit_whatever_their_scales_were_rounded_to(
    machine: Machine, manifest: Manifest
) -> None:
    machine.measured = Measured(0.02, 0.5, 1.0)
    assert recorded(machine, rounded(manifest, "int4", "fp16"))[1] is not None
    with pytest.raises(VerificationError, match=r"mean KL divergence is 0\.5, 0\.1 is accepted"):
        recorded(machine, rounded(manifest, "fp32", "fp16"))


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_cuda_engine_that_fails_while_it_runs_is_an_error_where_its_gpu_is(
    machine: Machine, manifest: Manifest, gpus: int
) -> None:
    machine.gpus, machine.measured = gpus, EngineError("q_norm_weight is not supported")
    made = engine(manifest, "cuda")
    if gpus:
        with pytest.raises(EngineError, match="q_norm_weight"):
            recorded(machine, made)
    else:
        assert recorded(machine, made) == (made, None)
    assert machine.closed == 1


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_types_without_a_kernel_on_the_cpu_leave_a_tensorrt_graph_unmeasured(
    machine: Machine, manifest: Manifest, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine.refusal = EngineError("no kernel for bfloat16")
    made = graph(manifest, target, "bf16")
    with caplog.at_level(logging.WARNING):
        assert recorded(machine, made) == (made, None)
    assert "not compared with the model" in caplog.text
    assert "no kernel for bfloat16" in caplog.text


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_a_cpu_graph_that_does_not_run_is_an_error(machine: Machine, manifest: Manifest, target: str) -> None:
    machine.refusal = EngineError("no kernel")
    with pytest.raises(EngineError, match="no kernel"):
        recorded(machine, graph(manifest, target, "fp32"))


def test_logits_that_are_not_finite_are_refused(machine: Machine, manifest: Manifest) -> None:
    machine.measured = Measured(float("inf"), float("inf"), 0.0)
    with pytest.raises(
        VerificationError, match=r"the target does not say what the model says: .* nothing was written"
    ):
        recorded(machine, graph(manifest, "tensorrt-rtx", "int4"))
