"""TensorRT's engines executed: SmolLM2-135M against transformers in float32, on a GPU that they run on."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import CompileOptions, EngineOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import build, compile_model, optimize, verify
from llmc.runtimes.device.cuda import CudaDevice, cuda_devices
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.engines import open_session
from llmc.runtimes.tensorrt.bindings import BINDINGS

from ..generation import generate
from .conftest import STEPS, Engines
from .reference import Row, lead, lead_edited

ERROR, MEAN_KL = {"fp16": 0.2, "bf16": 1.2}, {"fp16": 4e-5, "bf16": 2e-3, "int4": 0.3}
"""Those of the same weights on ONNX Runtime's CUDA provider; none of these was measured with TensorRT yet."""
ASKED = EngineOptions(max_batch=8, chunk=64, capacities=(256, 1024))


@pytest.fixture(scope="module", params=list(BINDINGS))
def runtime(request: pytest.FixtureRequest) -> str:
    """Name of a runtime that is installed and runs on this GPU."""
    binding = BINDINGS[request.param]
    if importlib.util.find_spec(binding.module) is None:
        pytest.skip(f"{binding.title} is not installed")
    if not cuda_devices():
        pytest.skip("there is no CUDA device here")
    try:
        binding.require_runs_on(CudaDevice().compute_capability)
    except EngineError as error:
        pytest.skip(str(error))
    return binding.runtime


class TensorRTEngines:
    """Each precision built when it is first asked for."""

    def __init__(self, runtime: str, portable: Path, folder: Path) -> None:
        self.runtime, self.portable, self.folder = runtime, portable, folder

    def directory(self, precision: Any, asked: EngineOptions = ASKED) -> Path:
        name = f"{precision}{'-stripped' if asked.strip_weights else ''}"
        if not (self.folder / name).exists():
            target = self.folder / f"{precision}-target"
            options: Any = {"target": self.runtime, "precision": precision, "context": 1024}
            if not target.exists():
                optimize(self.portable, target, OptimizeOptions(**options))
            build(target, self.folder / name, asked)
        return self.folder / name

    def open(self, precision: str, asked: EngineOptions = ASKED) -> DeviceSession:
        session = open_session(self.directory(precision, asked))
        assert isinstance(session, DeviceSession)
        return session


@pytest.fixture(scope="module")
def built(runtime: str, engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> TensorRTEngines:
    return TensorRTEngines(runtime, engines.portable, tmp_path_factory.mktemp(runtime))


@pytest.fixture
def half(built: TensorRTEngines) -> Iterator[DeviceSession]:
    session = built.open("fp16")
    yield session
    session.close()


@pytest.mark.parametrize(
    "case",
    [
        {"batch": 1},
        {"batch": 8},
        {"batch": 8, "chunk": 32, "steps": 16},
        {"batch": 8, "chunk": 7, "steps": 16},
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int4"])
def test_logits_are_those_of_float32(
    built: TensorRTEngines, rows: list[Row], precision: str, case: dict[str, Any], record: Any
) -> None:
    options = dict(case)
    session = built.open(precision)
    led = lead(session, rows[: options.pop("batch")], **options)
    session.close()
    measured = record(error=led.error, mean_kl=led.mean_kl)
    assert led.error <= ERROR.get(precision, np.inf), measured
    assert led.mean_kl <= MEAN_KL[precision], measured
    assert np.array_equal(led.actual[np.arange(len(led.chosen)), led.chosen], led.actual.max(axis=1))


def test_the_loop_generates_what_the_steps_say(half: DeviceSession, rows: list[Row]) -> None:
    """Tokens of the recorded loop are the arg-max of single steps along them."""
    made = generate(half, [row.prompt for row in rows], max_tokens=STEPS).tokens
    alone = [replace(row, continuation=list(tokens)) for row, tokens in zip(rows, made, strict=True)]
    led = lead(half, alone, steps=STEPS)
    expected = np.array([tokens[1:] for tokens in made]).T.flatten()
    decided = np.partition(led.actual, -2, axis=1)[:, -2:]
    sure = (decided[:, 1] - decided[:, 0])[len(rows) : len(rows) + len(expected)] > 2 * ERROR["fp16"]
    chosen = led.chosen[len(rows) : len(rows) + len(expected)]
    assert sure.mean() > 0.5
    assert np.array_equal(chosen[sure], expected[sure])


def test_rows_move_to_a_longer_cache(half: DeviceSession, rows: list[Row]) -> None:
    prompt = np.array([rows[0].prompt[:64]], np.int64)
    logits = []
    for moves in (False, True):
        half.reset(1, 200 if moves else 1000)
        half.forward(prompt)
        if moves:
            half.grow(1000)
        logits.append(half.forward(np.array([[7]], np.int64)).host())
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=ERROR["fp16"])


def test_rows_are_released_cut_and_copied(half: DeviceSession, rows: list[Row]) -> None:
    assert lead_edited(half, rows) <= ERROR["fp16"]


def test_an_engine_without_weights_gets_them_from_the_graph(
    built: TensorRTEngines, half: DeviceSession, rows: list[Row]
) -> None:
    asked = replace(ASKED, capacities=(256,), strip_weights=True)
    size = sum(path.stat().st_size for path in built.directory("fp16", asked).glob("*.plan"))
    assert size < 100e6
    session = built.open("fp16", asked)
    assert lead(session, rows[:2], steps=8).error <= ERROR["fp16"]
    session.close()


def test_verify_runs_the_engine_itself(runtime: str, smollm2: Path, tmp_path: Path) -> None:
    options: Any = {"target": runtime, "precision": "fp16", "context": 256}
    compiling = CompileOptions(ExportOptions(verify="on"), OptimizeOptions(**options))
    compile_model(str(smollm2), tmp_path / "engine", compiling)
    report = verify(tmp_path / "engine")
    assert report.passed
    assert [(graph.operators, graph.remark) for graph in report.graphs] == [("TensorRT's", "")]
    manifest = open_artifact(tmp_path / "engine").manifest
    write_manifest(
        tmp_path / "engine", replace(manifest, tolerances={"engine.onnx": {"largest logit error": 0.0}}, files={})
    )
    assert not verify(tmp_path / "engine").passed
