"""Which runtime builds, and which opens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.targets import TARGETS
from llmc.runtimes.engines import ENGINES, get_engine, runtime_of


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
    assert set(ENGINES) == {row.runtime for row in TARGETS}
    for name in ENGINES:
        assert get_engine(name).name == name
    with pytest.raises(
        EngineError, match="no engine is called cpu; there are onnxruntime-cpu, onnxruntime-cuda, ten"
    ):
        get_engine("cpu")
