"""verify, export and compile: what is looked at first, what is written, and in which order."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.artifact.golden import GOLDEN, Golden
from llmc.compiler.artifact.loss import Loss
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import VerifyReport
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import ArtifactError, MissingDependencyError, UsageError
from llmc.compiler.base.options import CompileOptions, EngineOptions, ExportOptions, OptimizeOptions
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.driver import driver
from llmc.compiler.driver.measured_artifact import MeasuredGraph
from llmc.compiler.driver.verification import KL, LOGIT_ERROR, TOP1, Measured
from llmc.runtimes.session.engine import GraphRun

from .driver_fakes import WEIGHT_BYTES, Remembered, graph, install, make, outcome, portable


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> Remembered:
    return install(monkeypatch, manifest)


# --- verify ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What measuring was given."""
    given: dict[str, Any] = {}

    def measure(
        directory: Path, manifest: Manifest, golden: Golden, *, threads: int | None = None, progress: Any
    ) -> Any:
        given.update(directory=directory, manifest=manifest, golden=golden, threads=threads)
        run = GraphRun("model.onnx", "ONNX Runtime's", None, "its graph")
        return [MeasuredGraph(run, Measured(0.3, 0.2, 0.9))]

    monkeypatch.setattr(driver, "measure_graphs", measure)
    return given


def test_verify_measures_against_what_was_tolerated_when_it_was_made(
    tmp_path: Path, manifest: Manifest, measured: dict[str, Any]
) -> None:
    accepted = {LOGIT_ERROR: 0.25, TOP1: 0.8}
    was = {"model.onnx": {LOGIT_ERROR: 0.1, KL: 0.1}}
    engine = make(tmp_path / "engine", replace(manifest, tolerances={"model.onnx": accepted}, measured=was))
    report = driver.verify(engine, threads=3)
    assert [(check.name, check.tolerance, check.passed) for check in report.checks] == [
        (LOGIT_ERROR, 0.25, False),
        (KL, None, True),
        (TOP1, 0.8, True),
    ]
    assert [(graph.graph, graph.operators, graph.remark) for graph in report.graphs] == [
        ("model.onnx", "ONNX Runtime's", "its graph")
    ]
    assert (report.loss, report.most) == (Loss(0.2, 0.9, "model.onnx"), None)
    assert (measured["directory"], measured["threads"], measured["golden"].vocab_size) == (engine, 3, 64)


@pytest.mark.parametrize(("limit", "passed"), [(0.2, True), (0.1, False)])
def test_verify_takes_a_limit(
    tmp_path: Path, manifest: Manifest, measured: dict[str, Any], limit: float, passed: bool
) -> None:
    engine = make(tmp_path / "engine", manifest)
    report = driver.verify(engine, max_kl=limit)
    assert report.most is not None
    assert report.most.passed is report.passed is passed
    measured.clear()
    with pytest.raises(UsageError, match=r"--max-kl -0\.1 is no divergence"):
        driver.verify(engine, max_kl=-0.1)
    assert measured == {}


def test_verify_looks_at_the_files_first(tmp_path: Path, manifest: Manifest, measured: dict[str, Any]) -> None:
    engine = make(tmp_path / "engine", manifest)
    data = engine / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data is damaged"):
        driver.verify(engine)
    assert measured == {}


def test_verify_needs_golden_data(tmp_path: Path, manifest: Manifest, measured: dict[str, Any]) -> None:
    engine = make(tmp_path / "engine", manifest)
    (engine / GOLDEN).unlink()
    write_manifest(engine, manifest)
    with pytest.raises(UsageError, match="carries no golden data; compile it again with --verify on"):
        driver.verify(engine)
    assert measured == {}


# --- export and compile ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "measured"), [("fp32", True), ("fp16", True), ("bf16", False)])
def test_an_export_is_measured_where_the_cpu_has_its_kernels(
    tmp_path: Path, helpers: Remembered, caplog: pytest.LogCaptureFixture, dtype: Any, measured: bool
) -> None:
    made = driver.export("model", tmp_path / "out", ExportOptions(dtype=dtype))
    assert made == open_artifact(tmp_path / "out").manifest
    assert helpers.calls == ["capture", "write_golden", *(["measure"] if measured else [])]
    assert ("no bfloat16 graph" in caplog.text) != measured
    assert {"model.onnx", "model.onnx.data", "config.json", GOLDEN} <= set(made.files)


def test_an_export_without_weights(tmp_path: Path, helpers: Remembered) -> None:
    made = driver.export("model", tmp_path / "out", ExportOptions(weights="none", verify="off"))
    assert "model.onnx.data" not in made.files


def test_an_export_replaces_nothing_unasked(tmp_path: Path, helpers: Remembered, manifest: Manifest) -> None:
    old = make(tmp_path / "out", portable(manifest), mark="old")
    with pytest.raises(ArtifactError, match="exists already"):
        driver.export("model", old, ExportOptions())
    assert helpers.calls == []
    driver.export("model", old, ExportOptions(), overwrite=True)
    assert not (old / "mark").exists()


def test_compile_is_export_optimize_and_build(tmp_path: Path, helpers: Remembered) -> None:
    helpers.engine_outcomes = [outcome("TakeLengths", lengths="inputs")]
    engine = EngineOptions()
    options = CompileOptions(ExportOptions(), OptimizeOptions(precision="int8", context=99, max_kl=0.25), 5, engine)
    report = driver.compile_model("model", tmp_path / "out", options)
    made = report.manifest
    assert made == open_artifact(tmp_path / "out").manifest
    assert (made.kind, made.precision, made.max_context) == ("engine", "int8", 99)
    assert made.contract == Contract(logits="last", lengths="inputs")
    assert [record.name for record in made.passes] == ["PackQKV", "Fuse", "TakeLengths"]
    assert made.engine is not None
    assert (made.engine.threads, helpers.given["build"]["threads"]) == (5, 5)
    assert helpers.calls == [
        "capture",
        "write_golden",
        "target_passes",
        "target passes",
        "get_engine",
        "engine passes",
        "build",
        "measure",
    ]
    assert helpers.given["write_golden"]["context"] == 99
    assert helpers.given["target_passes"]["golden"] is not None
    assert helpers.given["build"]["options"] is engine
    assert report.outcomes == tuple(helpers.outcomes)
    assert report.verification == VerifyReport(())
    assert helpers.given["measure"]["max_kl"] == 0.25
    assert (report.skipped, report.genai_refusal) == ("the model needs 32 GiB", "it has states")
    assert {"config.json", "model.onnx.data", GOLDEN} <= set(made.files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CompileOptions(optimize=OptimizeOptions(context=65)), "--context 65 is more than the 64 positions"),
        (
            CompileOptions(
                optimize=OptimizeOptions(target="tensorrt-rtx"), engine=EngineOptions(capacities=(32, 65))
            ),
            "--capacity 65 is more than the 64 tokens",
        ),
    ],
)
def test_a_length_that_the_model_has_not_is_refused_before_any_work(
    tmp_path: Path, helpers: Remembered, monkeypatch: pytest.MonkeyPatch, options: CompileOptions, message: str
) -> None:
    config = SimpleNamespace(max_position_embeddings=64)
    monkeypatch.setattr(driver, "open_model", lambda *_, **__: SimpleNamespace(config=config))
    monkeypatch.setattr("llmc.compiler.base.targets.Target.require_installed", lambda self: None)
    with pytest.raises(UsageError, match=message):
        driver.compile_model("model", tmp_path / "out", options)
    assert (helpers.calls, list(tmp_path.iterdir())) == ([], [])


def test_a_runtime_that_is_not_installed_is_said_before_any_work(
    tmp_path: Path, helpers: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match="OpenVINO is not installed"):
        driver.compile_model("model", tmp_path / "out", CompileOptions(optimize=OptimizeOptions(target="openvino")))
    assert helpers.calls == []


@pytest.mark.parametrize(
    ("target", "precision", "accepted"), [("cpu", "auto", "auto"), ("cuda", "fp8", "auto, none")]
)
def test_zero_points_that_a_target_has_not_are_refused_before_any_work(
    tmp_path: Path, helpers: Remembered, target: Any, precision: Any, accepted: str
) -> None:
    options = OptimizeOptions(target=target, precision=precision, zero_points="offset")
    with pytest.raises(UsageError, match=f"{target} --precision .* takes --zero-points {accepted}, not offset$"):
        driver.compile_model("model", tmp_path / "out", CompileOptions(optimize=options))
    assert helpers.calls == []
    assert not (tmp_path / "out").exists()


class Stages(NoProgress):
    """Remembers stages and amounts."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        self.said.append((stage, total, unit))

    def advance(self, done: int) -> None:
        self.said.append((done,))


def test_writing_weights_is_one_stage(tmp_path: Path) -> None:
    model = graph()
    second = ir.val("v", ir.DataType.FLOAT, [WEIGHT_BYTES // 2])
    second.const_value = ir.tensor(np.ones(WEIGHT_BYTES // 2, np.float32), name="v")
    model.graph.register_initializer(second)
    stages = Stages()
    driver._write(model, tmp_path, stages)
    total = 3 * WEIGHT_BYTES
    assert stages.said == [("Writing weights", total, "bytes"), (2 * WEIGHT_BYTES,), (total,)]
