"""Faults in a graph that no prompt of a few tokens shows: ``verify`` finds each of them.

Engines of tiny models, whose graphs are changed as a wrong pass or runtime would have made them: a window that
is one token off, a rotation that is not scaled beyond the original context, a chunk that begins in the wrong slot.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.artifact.golden import load_golden
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model, verify
from llmc.compiler.driver.golden_passage import SPARE
from llmc.compiler.driver.verification import ALONG_TEXT, WINDOWS
from llmc.runtimes.kernels.library import KernelsUnavailable
from llmc.runtimes.onnxruntime import cpu_engine

from ..shared import Shared
from .tiny import save_model

WINDOW, ORIGINAL, CONTEXT, THETA, DIM = 70, 64, 256, 10000.0, 16
WINDOWED: dict[str, Any] = {"model_type": "mistral", "sliding_window": WINDOW, "max_position_embeddings": CONTEXT}
SCALED: dict[str, Any] = {
    "model_type": "llama",
    "max_position_embeddings": CONTEXT,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": THETA,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}
SWITCHED: dict[str, Any] = {
    "model_type": "phi3",
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": ORIGINAL,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": THETA,
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * (DIM // 2),
        "long_factor": [1.0 + index for index in range(DIM // 2)],
    },
}
FACTOR = 0.1 * np.log(4.0) + 1.0
"""By which YaRN scales cosines and sines (Peng et al. 2023, section 3.4)."""
GRAPHS = ("model.onnx", "engine.onnx")
Change = Callable[[onnx.ModelProto, Path], None]


def engine(shared: Shared, settings: dict[str, Any], precision: Any = "fp32", target: Any = "cpu") -> Path:
    """Verified when it was made."""

    def make(path: Path) -> None:
        source = save_model(path.with_name(path.name + ".source"), **settings)
        options = CompileOptions(ExportOptions(verify="on"), OptimizeOptions(target, precision), threads=1)
        compile_model(str(source), path, options)
        shutil.rmtree(source)

    return shared.make(f"verified-{settings['model_type']}-{target}-{precision}", make, **settings)


def planted(sound: Path, folder: Path, change: Change) -> Path:
    """A copy with a fault in both graphs, whole as far as its hashes say."""
    shutil.copytree(sound, folder)
    for name in (name for name in GRAPHS if (folder / name).exists()):
        model = onnx.load(folder / name, load_external_data=False)
        change(model, folder)
        onnx.save(model, folder / name)
    write_manifest(folder, replace(open_artifact(sound).manifest, files={}))
    return folder


def failed(directory: Path) -> set[str]:
    """Names of the checks that do not pass."""
    return {check.name for check in verify(directory, threads=1).checks if not check.passed}


def window_off_by(count: int) -> Change:
    def change(model: onnx.ModelProto, folder: Path) -> None:
        windows = [
            item for node in model.graph.node for item in node.attribute if "window" in item.name and item.i > 0
        ]
        assert {item.i for item in windows} == {WINDOW}
        for item in windows:
            item.i += count

    return change


def unscaled_from(position: int) -> Change:
    """The tables of cosines and sines, from there on, of frequencies that nothing scales."""

    def change(model: onnx.ModelProto, folder: Path) -> None:
        angles = np.outer(np.arange(CONTEXT), THETA ** (-np.arange(0, DIM, 2) / DIM))
        tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
        for kind, values in tables.items():
            (tensor,) = [item for item in model.graph.initializer if item.name.startswith(f"rotary.{kind}")]
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            table = numpy_helper.to_array(tensor).copy()
            assert table.shape == values.shape
            # The attention factor stays: what is planted is in the frequencies alone.
            table[position:] = FACTOR * values[position:]
            tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))

    return change


def chunk_begins_early(model: onnx.ModelProto, folder: Path) -> None:
    """A chunk of several tokens behind others is put one slot too early: over the last token before the seam."""
    lengths = next(node for node in model.graph.node if "seqlens_k" in node.output)
    place = list(model.graph.node).index(lengths)
    later = [
        helper.make_node("Shape", ["input_ids"], ["planted.chunk"], start=1, end=2),
        helper.make_node("Shape", ["attention_mask"], ["planted.total"], start=1, end=2),
        helper.make_node("Constant", [], ["planted.one"], value_ints=[1]),
        helper.make_node("Greater", ["planted.chunk", "planted.one"], ["planted.several"]),
        helper.make_node("Less", ["planted.chunk", "planted.total"], ["planted.behind"]),
        helper.make_node("And", ["planted.several", "planted.behind"], ["planted.seam"]),
        helper.make_node("Cast", ["planted.seam"], ["planted.early"], to=onnx.TensorProto.INT64),
        helper.make_node("Sub", [lengths.input[0], "planted.early"], ["planted.lengths"]),
    ]
    lengths.input[0] = "planted.lengths"
    for node in reversed(later):
        model.graph.node.insert(place, node)


@pytest.mark.parametrize("settings", [WINDOWED, SCALED], ids=["window", "yarn"])
def test_a_sound_engine_passes(shared: Shared, settings: dict[str, Any]) -> None:
    directory = engine(shared, settings)
    assert failed(directory) == set()
    golden = load_golden(directory)
    assert golden is not None
    assert golden.passage is not None
    assert golden.lengths.max() + golden.tokens.shape[1] < ORIGINAL < golden.passage.prompt


def test_a_model_whose_rotation_switches_is_compared_up_to_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond it a text that is read in chunks is another than one that is read whole: the context ends there."""
    source = save_model(tmp_path / "source", **SWITCHED)
    compile_model(str(source), tmp_path / "engine", CompileOptions(ExportOptions(verify="on"), OptimizeOptions()))
    assert failed(tmp_path / "engine") == set()
    golden = load_golden(tmp_path / "engine")
    assert golden is not None
    assert golden.passage is not None
    assert open_artifact(tmp_path / "engine").manifest.max_context == ORIGINAL
    assert len(golden.passage.tokens) == ORIGINAL - SPARE
    said = [record.getMessage() for record in caplog.records if "longrope" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"beyond {ORIGINAL} tokens")


@pytest.mark.parametrize("count", [-1, 1])
def test_a_window_that_is_one_token_off(shared: Shared, tmp_path: Path, count: int) -> None:
    """No prompt of the golden data is as long as the window: they pass."""
    found = failed(planted(engine(shared, WINDOWED), tmp_path / "off", window_off_by(count)))
    assert len(found) > 1
    assert all(name.endswith(ALONG_TEXT) for name in found - {WINDOWS})


@pytest.mark.parametrize("position", [0, ORIGINAL])
def test_a_scaling_that_is_left_out(shared: Shared, tmp_path: Path, position: int) -> None:
    """Everywhere, or beyond the original context alone."""
    found = failed(planted(engine(shared, SCALED), tmp_path / "off", unscaled_from(position)))
    assert {name.endswith(ALONG_TEXT) for name in found} == ({True} if position else {True, False})


def test_a_chunk_that_begins_in_the_wrong_slot(shared: Shared, tmp_path: Path) -> None:
    """Prompts are computed whole, and tokens one by one: only a text in chunks shows it."""
    found = failed(planted(engine(shared, WINDOWED), tmp_path / "off", chunk_begins_early)) - {WINDOWS}
    assert found
    assert all(name.endswith(ALONG_TEXT) for name in found)


# --- both graphs of an engine ---------------------------------------------------------------------------------------


def test_a_window_that_is_off_shows_in_both_graphs_of_an_int8_engine(shared: Shared, tmp_path: Path) -> None:
    """That with llmc's own operators and that with ONNX Runtime's."""
    sound = engine(shared, WINDOWED, "int8")
    report = verify(sound, threads=1)
    assert report.passed
    assert [graph.graph for graph in report.graphs] == ["engine.onnx", "model.onnx"]
    off = verify(planted(sound, tmp_path / "off", window_off_by(-1)), threads=1)
    for graph in off.graphs:
        found = {check.name for check in graph.checks if not check.passed}
        assert found - {WINDOWS} or not graph.checks, f"{graph.graph} does not run here or fails"
        assert all(name.endswith(ALONG_TEXT) for name in found - {WINDOWS})


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [-1, 1])
def test_a_window_that_is_off_shows_where_rounding_hides_it(
    shared: Shared, tmp_path: Path, target: Any, count: int
) -> None:
    """What a token may not see changes nothing at all; the last that it sees does, however weights were rounded."""
    sound = engine(shared, WINDOWED, "int4", target)
    report = verify(sound, threads=1)
    assert report.passed
    for graph in report.graphs:
        (check,) = [check for check in graph.checks if check.name == WINDOWS]
        assert (check.measured, check.tolerance) == (0, 0)
    off = verify(planted(sound, tmp_path / "off", window_off_by(count)), threads=1)
    for graph in off.graphs:
        (check,) = [check for check in graph.checks if check.name == WINDOWS]
        assert (check.measured, check.passed) == (1, False)


def test_an_engine_is_verified_where_llmcs_operators_do_not_run(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other graph rounds differently, and is held to what it lost itself."""

    def none() -> Path:
        raise KernelsUnavailable("no C compiler is installed")

    sound = engine(shared, WINDOWED, "int8")
    monkeypatch.setattr(cpu_engine, "kernel_library", none)
    report = verify(sound, threads=1)
    assert report.passed
    own, plain = report.graphs
    assert (own.checks, own.remark) == ((), "running without llmc's CPU kernels, slower: no C compiler is installed")
    assert (plain.graph, plain.operators) == ("model.onnx", "ONNX Runtime's")
    assert all(check.tolerance is not None for check in plain.checks)
