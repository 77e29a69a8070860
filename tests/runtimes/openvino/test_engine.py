"""An engine of OpenVINO on a tiny graph: what is written, what is opened, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base import processors
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError
from llmc.runtimes.openvino import engine as engine_module
from llmc.runtimes.openvino.engine import OpenVino
from llmc.runtimes.session.engine import BuildRequest

from .tiny_graph import KV_HEADS, OUTPUTS, WIDTH, WINDOWS, attend, save

openvino = pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("openvino")
    save(folder / "model.onnx")
    built = OpenVino().build(BuildRequest(folder / "model.onnx", None, folder))
    assert built.graph == folder / "model.onnx"
    return folder, dict(built.details)


@pytest.fixture
def artifact(built: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the directory's manifest says; its fields may be set."""
    folder, details = built
    manifest = SimpleNamespace(
        engine=SimpleNamespace(details=details, threads=None),
        precision="fp32",
        weights_label="fp32",
        max_context=None,
        contract=Contract(),
        weight_bytes=5,
    )
    found = SimpleNamespace(manifest=manifest, file=lambda name: folder / name)
    monkeypatch.setattr(engine_module, "open_artifact", lambda directory: found)
    return manifest


def test_what_a_build_writes_and_records(built: tuple[Path, dict[str, Any]]) -> None:
    """Weights as they are: half of them would do for OpenVINO's own default."""
    folder, details = built
    assert details == {"openvino": openvino.__version__.split("-")[0]}
    model = openvino.Core().read_model(str(folder / "openvino_model.xml"))
    types = {
        node.get_element_type().get_type_name() for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    assert "f32" in types
    assert "f16" not in types


def test_it_says_what_the_layers_say(artifact: Any) -> None:
    session = OpenVino().open(Path("engine"), threads=1)
    session.reset(2, 10)
    tokens = [[3, 1, 4, 1], [2, 7, 1, 0]]
    session.forward(np.array([row[:3] for row in tokens]))
    made = session.forward(np.array([row[3:] for row in tokens])).host()
    for row, expected in zip(made, tokens, strict=True):
        np.testing.assert_allclose(row[0, : len(attend([0])[0])], attend(expected)[-1], rtol=1e-5, atol=1e-6)
    session.close()


def test_what_is_said_of_it(artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of a token in float32; the state of a convolution does not grow."""
    info = OpenVino().open(Path("engine"), threads=2).info
    assert (info.runtime, info.vocab_size, info.num_layers) == ("openvino-cpu", OUTPUTS, len(WINDOWS))
    assert info.cache_bytes_per_token == 2 * len(WINDOWS) * KV_HEADS * WIDTH * 4
    assert (info.max_context, info.weight_bytes, info.threads) == (1 << 30, 5, 2)
    assert (info.details["activations"], info.details["cache_precision"]) == ("f32", "f32")
    artifact.max_context = 77
    assert OpenVino().open(Path("engine"), threads=2).info.max_context == 77


def test_a_cache_of_smaller_numbers_takes_less(built: tuple[Path, dict[str, Any]], artifact: Any) -> None:
    model = openvino.Core().read_model(str(built[0] / "openvino_model.xml"))

    class Compiled:
        """One whose plugin rounds keys and values to eight bits."""

        def get_property(self, name: str) -> Any:
            return openvino.Type.u8 if name == "KV_CACHE_PRECISION" else openvino.Type.f32

    info = engine_module.engine_info(openvino, artifact, model, Compiled(), 1)
    assert info.cache_bytes_per_token == 2 * len(WINDOWS) * KV_HEADS * WIDTH
    assert info.details["cache_precision"] == "u8"


@pytest.mark.parametrize(("asked", "recorded", "expected"), [(2, 3, 2), (None, 3, 3), (None, None, 1), (None, 9, 8)])
def test_threads(
    artifact: Any, monkeypatch: pytest.MonkeyPatch, asked: int | None, recorded: int | None, expected: int
) -> None:
    """Those that are asked for, else the manifest's where as many can run, else one per core."""
    given: list[int] = []
    options = engine_module.plugin_options
    monkeypatch.setattr(engine_module, "plugin_options", lambda *which: given.append(which[2]) or options(*which))
    monkeypatch.setattr(processors, "physical_cores", lambda: 1)
    monkeypatch.setattr(processors, "most_threads", lambda: 8)
    artifact.engine.threads = recorded
    assert OpenVino().open(Path("engine"), threads=asked).info.threads == expected
    assert given == [expected]


def test_what_is_refused(artifact: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    artifact.engine.details = {"openvino": "2999.1.0"}
    with pytest.raises(EngineError, match=r"built by OpenVINO 2999\.1\.0"):
        OpenVino().open(Path("engine"))
    artifact.engine = None
    with pytest.raises(
        EngineError, match=r"holds a graph for OpenVINO and no engine yet; make one: llmc build engine"
    ):
        OpenVino().open(Path("engine"))


def test_a_model_that_the_library_refuses(artifact: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("no model")
    found = SimpleNamespace(manifest=artifact, file=lambda name: tmp_path / name)
    monkeypatch.setattr(engine_module, "open_artifact", lambda directory: found)
    with pytest.raises(EngineError, match=r"^OpenVINO 2\S+ refuses openvino_model\.xml: .+") as raised:
        OpenVino().open(tmp_path)
    assert "\n" not in str(raised.value)
