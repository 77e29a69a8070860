"""Which runtime builds, and which opens."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError, UsageError
from llmc.compiler.base.options import EngineOptions
from llmc.compiler.base.progress import NoProgress
from llmc.runtimes.engines import get_engine, make_builder, require_builder, runtime_of


def manifest(target: str | None, runtime: str | None = None, **fields: Any) -> Any:
    engine = None if runtime is None else SimpleNamespace(runtime=runtime)
    return SimpleNamespace(target=target, engine=engine, **fields)


@pytest.mark.parametrize(
    ("target", "runtime", "expected"),
    [
        (None, None, "onnxruntime-cpu"),
        ("cpu", None, "onnxruntime-cpu"),
        ("cuda", None, "onnxruntime-cuda"),
        # Graphs of standard operators run as they are, before an engine is made of them.
        ("tensorrt", None, "onnxruntime-cpu"),
        ("tensorrt-rtx", None, "onnxruntime-cpu"),
        ("openvino", None, "onnxruntime-cpu"),
        ("tensorrt-rtx", "tensorrt-rtx", "tensorrt-rtx"),
        ("openvino", "openvino-cpu", "openvino-cpu"),
        ("cuda", "onnxruntime-cpu", "onnxruntime-cpu"),
    ],
)
def test_what_opens_an_artifact(target: str | None, runtime: str | None, expected: str) -> None:
    assert runtime_of(manifest(target, runtime)) == expected


def test_engines_by_name() -> None:
    for name in ("onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "openvino-cpu"):
        assert get_engine(name).name == name
    with pytest.raises(
        EngineError, match="no engine is called cpu; there are onnxruntime-cpu, onnxruntime-cuda, ten"
    ):
        get_engine("cpu")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("cpu", "onnxruntime-cpu"),
        ("cuda", "onnxruntime-cuda"),
        ("tensorrt", "tensorrt"),
        ("tensorrt-rtx", "tensorrt-rtx"),
        ("openvino", "openvino-cpu"),
    ],
)
def test_what_builds_a_target(target: str, expected: str) -> None:
    graph = manifest(target, max_context=None, precision="fp32")
    assert make_builder(graph, EngineOptions(), NoProgress()).name == expected
    if "tensorrt" not in target:
        with pytest.raises(UsageError, match=r"--max-batch, .* are for --target tensorrt"):
            make_builder(graph, EngineOptions(max_batch=3), NoProgress())


@pytest.mark.parametrize(
    ("target", "module"),
    [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx_bindings"), ("openvino", "openvino")],
)
def test_a_missing_builder_is_said_early(target: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match="is not installed"):
        require_builder(target)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_graph_for_onnx_runtime_needs_no_builder(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    require_builder(target)
