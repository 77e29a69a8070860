"""The engine for CUDA without a GPU: what opens, what is refused, and what is warned of."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.base.errors import ArtifactError, EngineError, MissingDependencyError
from llmc.runtimes.device.cuda import CudaDevice
from llmc.runtimes.device.interface import HostDevice
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.engines import get_engine, open_session
from llmc.runtimes.memory.facts import read_facts
from llmc.runtimes.memory.plan import plan_memory
from llmc.runtimes.onnxruntime import cuda_engine as engine
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession
from llmc.runtimes.session.engine import BuildRequest, BuiltEngine

from ..device.fake_cuda import FakeCuda, install
from ..tiny_engine import PROMPTS, compiled


@pytest.fixture(scope="module")
def directory() -> Path:
    return compiled()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    install(monkeypatch, FakeCuda())
    monkeypatch.setattr(engine, "_load_libraries", lambda: None)
    return CudaDevice()


class _Inference:
    """A loaded graph that says where its nodes are."""

    def __init__(
        self, parts: dict[str, list[tuple[str, str]]] | None = None, providers: tuple[str, ...] = ()
    ) -> None:
        self.parts = parts or {}
        self.providers = providers or (engine.PROVIDER, "CPUExecutionProvider")

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def nodes(part: list[tuple[str, str]]) -> Callable[[], list[Any]]:
            return lambda: [SimpleNamespace(op_type=kind, name=name) for kind, name in part]

        return [SimpleNamespace(ep_name=name, get_nodes=nodes(part)) for name, part in self.parts.items()]


def loads(monkeypatch: pytest.MonkeyPatch, inference: _Inference | Exception) -> list[dict[str, Any]]:
    """Let ONNX Runtime have a CUDA provider and give this; what it is called with, and the environment then."""
    import onnxruntime

    calls: list[dict[str, Any]] = []

    def make(model: Any, options: Any, *, providers: Any) -> _Inference:
        told = options.get_session_config_entry("session.record_ep_graph_assignment_info")
        calls.append({"providers": providers, "xqa": os.environ.get("ORT_ENABLE_XQA"), "tells_places": told})
        if isinstance(inference, Exception):
            raise inference
        return inference

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [engine.PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    return calls


def copy_without(directory: Path, copy: Path, name: str) -> Path:
    """An artifact that never had the file."""
    shutil.copytree(directory, copy)
    (copy / name).unlink()
    manifest = json.loads((copy / "llmc.json").read_text())
    del manifest["files"][name]
    (copy / "llmc.json").write_text(json.dumps(manifest))
    return copy


def test_the_artifact_says_what_it_is(directory: Path) -> None:
    manifest = open_artifact(directory).manifest
    assert manifest.target == "cuda"
    assert manifest.engine is not None
    assert manifest.engine.runtime == "onnxruntime-cuda"
    assert (manifest.engine.graph, manifest.contract.lengths) == ("engine.onnx", "inputs")


def test_without_a_gpu_it_says_so(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeCuda(devices=0))
    for opener in (open_session, get_engine("onnxruntime-cuda").open):
        with pytest.raises(EngineError, match=r"an engine for a CUDA GPU, and there is none here.*`llmc doctor`"):
            opener(directory)


def test_on_the_host_the_same_session_runs(directory: Path) -> None:
    session = engine.open_on_host(directory)
    assert isinstance(session, DeviceSession)
    assert session.info.details["device"] == "cpu"
    assert (session.info.cache, session.info.logits, session.info.precision) == ("shared", "last", "fp16")
    assert session.info.cache_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert session.device_bytes() is None
    session.close()


def test_memory_is_checked_before_it_is_allocated(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostDevice, "free_bytes", lambda self: 1_000_000)
    monkeypatch.setattr(HostDevice, "allocate", lambda self, nbytes: pytest.fail("allocated"))
    session = engine.open_on_host(directory)
    with pytest.raises(EngineError, match=r"are needed for context 128, batch 100, chunk 128 .*memory has") as raised:
        session.reset(100, 128)
    assert "\n" not in str(raised.value)


def test_weights_that_are_loaded_already_are_not_counted_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_memory(read_facts(directory), 128, 3, 128)
    needed = plan.once_loaded.total
    assert needed < plan.total
    free = [needed - 1, needed]
    monkeypatch.setattr(HostDevice, "free_bytes", lambda self: free.pop(0))
    session = engine.open_on_host(directory)
    with pytest.raises(EngineError, match="context 128, batch 3, chunk 128"):
        session.reset(3, 128)
    session.reset(3, 128)
    session.close()


def test_a_graph_of_which_no_engine_was_made_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "graph")
    path = tmp_path / "graph" / "llmc.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kind": "target", "engine": None}))
    with pytest.raises(
        EngineError, match=r"holds a graph for a GPU and no engine yet; make one: llmc build .* -o DIR"
    ):
        engine.open_on_host(tmp_path / "graph")


def test_a_directory_without_weights_is_refused(directory: Path, tmp_path: Path) -> None:
    copy = copy_without(directory, tmp_path / "bare", "model.onnx.data")
    with pytest.raises(
        ArtifactError, match=r"made without weights; `python -m llmc.runtimes.bench.tools.random_weights"
    ):
        engine.open_on_host(copy)


def test_without_an_engine_graph_the_plain_one_runs(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = engine.open_on_host(directory)
    expected.reset(1, 20)
    logits = expected.forward(np.array(PROMPTS[:1], np.int64)).host()
    copy = copy_without(directory, tmp_path / "plain", "engine.onnx")
    manifest = open_artifact(copy).manifest
    write_manifest(copy, replace(manifest, contract=replace(manifest.contract, lengths="mask"), files={}))
    with caplog.at_level(logging.WARNING):
        session = engine.open_on_host(copy)
    assert isinstance(session, OnnxRuntimeSession)
    assert "attention runs outside the runtime's own operator" in caplog.text
    session.reset(1, 20)
    np.testing.assert_allclose(session.forward(np.array(PROMPTS[:1], np.int64)).host(), logits, rtol=0, atol=0.02)


def test_the_build_records_which_graph_is_opened(tmp_path: Path) -> None:
    for rewritten in (None, tmp_path / "engine.onnx"):
        built = engine.OnnxRuntimeCuda().build(BuildRequest(tmp_path / "model.onnx", rewritten, tmp_path))
        assert built == BuiltEngine(rewritten or tmp_path / "model.onnx", {})


def test_the_graph_is_loaded_on_the_device_s_stream(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_ENABLE_XQA", raising=False)
    calls = loads(monkeypatch, _Inference())
    engine.load("graph", gpu)
    ((name, options),) = calls[0]["providers"]
    assert name == engine.PROVIDER
    assert options["user_compute_stream"] == "77"
    assert options["has_user_compute_stream"] == "1"
    assert options["device_id"] == "0"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert calls[0]["tells_places"] == "1"
    assert calls[0]["xqa"] == "0"
    assert "ORT_ENABLE_XQA" not in os.environ
    monkeypatch.setenv("ORT_ENABLE_XQA", "1")
    engine.load("graph", gpu)
    assert calls[1]["xqa"] == os.environ["ORT_ENABLE_XQA"] == "1"


def test_nodes_on_the_cpu_are_named(
    gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shapes = [("Shape", "s"), ("Gather", "g")]
    loads(monkeypatch, _Inference({engine.PROVIDER: [("MatMul", "m")], "CPUExecutionProvider": shapes}))
    engine.load("graph", gpu)
    assert caplog.text == ""
    strays = [("Loop", f"l{index}") for index in range(7)]
    inference = _Inference({engine.PROVIDER: [("MatMul", "m")], "CPUExecutionProvider": [*shapes, *strays]})
    assert engine.nodes_elsewhere(inference) == [f"Loop l{index}" for index in range(7)]
    loads(monkeypatch, inference)
    engine.load("graph", gpu)
    assert caplog.messages == ["not on the GPU: Loop l0, Loop l1, Loop l2, Loop l3, Loop l4 and 2 more"]
    assert engine.nodes_elsewhere(object()) == []


def test_what_onnx_runtime_refuses_is_one_sentence(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    loads(monkeypatch, RuntimeError("no kernel for X\nmore\nlines"))
    with pytest.raises(EngineError, match=r"^ONNX Runtime [\d.]+ refuses the graph: no kernel for X$"):
        engine.load("graph", gpu)
    loads(monkeypatch, _Inference(providers=("CPUExecutionProvider",)))
    with pytest.raises(EngineError, match="could not start its CUDA provider; `llmc doctor`"):
        engine.load("graph", gpu)


def test_the_cpu_package_has_no_provider(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=r"has no CUDA provider; pip install 'llmc-toolchain\[cuda\]'"):
        engine.load("graph", gpu)
