"""Artifacts that an earlier llmc wrote open, say the same as then, and can be worked on."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.driver.driver import build, optimize, verify
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.engines import open_session
from llmc.runtimes.onnxruntime.cuda_engine import open_on_host

ARCHIVE = Path(__file__).parents[2] / "data" / "artifacts-version-1.tar.xz"
FUSED = Contract(rows="slot0", cache="shared", logits="last")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("version-1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("portable", Contract()),
        ("cpu-int4", FUSED),
        ("cpu-int4-engine", FUSED),
        ("cuda", Contract("slot0", ragged_chunks=False, cache="shared", logits="last", rounded_to="fp16")),
        ("cuda-engine", Contract("slot0", False, "inputs", cache="shared", logits="last", rounded_to="fp16")),
    ],
)
def test_how_their_graphs_are_called(old: Path, name: str, contract: Contract) -> None:
    manifest = open_artifact(old / name).manifest
    assert manifest.contract == contract
    if manifest.engine is not None:
        assert manifest.engine.graph == "engine.onnx"


@pytest.mark.parametrize("name", ["portable", "cpu-int4", "cpu-int4-engine", "cuda-engine"])
def test_they_still_say_what_the_model_says(old: Path, name: str) -> None:
    """The engine for the CPU with llmc's operators, or its graph where they do not run; that for CUDA on the host."""
    assert verify(old / name, threads=1).passed


def test_rows_of_unequal_length_go_on(old: Path) -> None:
    """Row by row and together, a chunk after another: both kinds of graph keep rows apart in their own way."""
    first, second = np.array([[3, 4, 5], [6, 0, 0]]), np.array([[7, 0], [8, 9]])
    for name in ("portable", "cpu-int4-engine"):
        session = open_session(old / name, threads=1)
        session.reset(2, 16)
        session.forward(first, np.array([3, 1]))
        together = session.forward(second, np.array([1, 2])).argmax()
        for row, tokens in enumerate(([3, 4, 5, 7], [6, 8, 9])):
            session.reset(1, 16)
            assert session.forward(np.array([tokens])).argmax()[0] == together[row]
        session.close()


def test_an_old_portable_graph_is_optimized(old: Path, tmp_path: Path) -> None:
    made = optimize(old / "portable", tmp_path / "cpu", OptimizeOptions(precision="int4")).manifest
    assert made.contract == open_artifact(old / "cpu-int4").manifest.contract


def test_an_old_graph_for_cuda_becomes_an_engine(old: Path, tmp_path: Path) -> None:
    made = build(old / "cuda", tmp_path / "engine")
    assert made.contract == open_artifact(old / "cuda-engine").manifest.contract
    session = open_on_host(tmp_path / "engine")
    assert isinstance(session, DeviceSession)
    session.close()
