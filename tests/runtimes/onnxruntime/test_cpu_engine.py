"""The engine for the CPU: which graph is opened, with which options, and what kind of graph it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from llmc.compiler.base import processors
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError
from llmc.runtimes.kernels.library import KernelsUnavailable
from llmc.runtimes.onnxruntime import cpu_engine as onnxruntime_engine
from llmc.runtimes.onnxruntime.cpu_engine import OnnxRuntimeCpu, engine_info, open_graph
from llmc.runtimes.session.engine import BuildRequest, BuiltEngine

from ..session_graphs import GROWING, load

Level = onnxruntime.GraphOptimizationLevel


def manifest(details: dict[str, Any] | None = None, threads: int | None = None, **fields: Any) -> SimpleNamespace:
    """Of an engine where there are details, else of a graph."""
    engine = None if details is None else SimpleNamespace(details=details, threads=threads)
    known = {"max_context": None, "contract": Contract(), "weight_bytes": 1, "weights_label": "fp32"}
    return SimpleNamespace(engine=engine, **{**known, **fields})


@pytest.fixture
def inferences(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Any]]:
    """Graphs that were loaded, with their options."""
    made: list[tuple[Path, Any]] = []
    inference = load(GROWING)
    monkeypatch.setattr(onnxruntime_engine, "_make_inference", lambda *arguments: made.append(arguments) or inference)
    return made


@pytest.fixture
def opened(
    inferences: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, Any, Any]]:
    """Opens an engine of a manifest; the graph's name, the options, the session."""

    def open_it(*, asked: int | None = None, **fields: Any) -> tuple[str, Any, Any]:
        made = manifest(**fields)
        monkeypatch.setattr(onnxruntime_engine, "open_artifact", lambda directory: SimpleNamespace(manifest=made))
        session = OnnxRuntimeCpu().open(Path("engine"), threads=asked)
        graph, options = inferences[-1]
        return graph.name, options, session

    return open_it


# --- which graph ----------------------------------------------------------------------------------------------------


def test_a_graph_of_this_version_is_not_optimized_again(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    graph, options, _ = opened(details={"onnxruntime": onnxruntime.__version__})
    assert (graph, options.graph_optimization_level) == ("engine.onnx", Level.ORT_DISABLE_ALL)
    assert caplog.messages == []


def test_a_graph_of_another_version_is_left_for_the_plain_one(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    graph, options, _ = opened(details={"onnxruntime": "1.0"})
    assert (graph, options.graph_optimization_level) == ("model.onnx", Level.ORT_ENABLE_ALL)
    assert caplog.messages == [f"built by onnxruntime 1.0, opened by {onnxruntime.__version__}: optimizing again"]


@pytest.mark.parametrize("details", [None, {}])
def test_a_graph_that_nothing_was_built_of(
    opened: Any, details: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    graph, options, _ = opened(details=details)
    assert (graph, options.graph_optimization_level) == ("model.onnx", Level.ORT_ENABLE_ALL)
    assert caplog.messages == []


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Libraries that ONNX Runtime would load."""
    paths: list[str] = []
    make = onnxruntime_engine._session_options

    class Options:
        """ONNX Runtime's own, which would load the library."""

        def __init__(self, threads: int | None, *, spinning: bool = False) -> None:
            self.inner = make(threads, spinning=spinning)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def register_custom_ops_library(self, path: str) -> None:
            paths.append(path)

    monkeypatch.setattr(onnxruntime_engine, "kernel_library", lambda: Path("kernels.so"))
    monkeypatch.setattr(onnxruntime_engine, "_session_options", Options)
    return paths


def test_an_engine_of_own_operators_gets_their_library(opened: Any, registered: list[str]) -> None:
    graph, options, _ = opened(details={"kernels": "llmc.cpu"})
    assert (graph, options.graph_optimization_level) == ("engine.onnx", Level.ORT_ENABLE_ALL)
    assert registered == ["kernels.so"]


def test_without_kernels_the_plain_graph_runs_and_says_why(
    opened: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Path:
        raise KernelsUnavailable("no C compiler is installed")

    monkeypatch.setattr(onnxruntime_engine, "kernel_library", none)
    assert opened(details={"kernels": "llmc.cpu"})[0] == "model.onnx"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "running without llmc's CPU kernels, slower: no C compiler is installed")
    ]


def test_the_plain_graph_can_be_opened_whatever_was_built(
    inferences: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest(details={"onnxruntime": onnxruntime.__version__}, threads=3)
    monkeypatch.setattr(onnxruntime_engine, "open_artifact", lambda directory: SimpleNamespace(manifest=made))
    session = open_graph(Path("engine"), threads=2)
    ((graph, options),) = inferences
    assert (graph, options.graph_optimization_level) == (Path("engine/model.onnx"), Level.ORT_ENABLE_ALL)
    assert options.intra_op_num_threads == session.info.threads == 2


# --- each graph -----------------------------------------------------------------------------------------------------


@pytest.fixture
def each(inferences: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Graphs that run, as (file, operators, whether there is a session, remark)."""

    def run(details: dict[str, Any] | None) -> list[tuple[str, str, bool, str]]:
        made = manifest(details=details)
        monkeypatch.setattr(onnxruntime_engine, "open_artifact", lambda directory: SimpleNamespace(manifest=made))
        runs = OnnxRuntimeCpu().open_each(Path("engine"), threads=2)
        return [(item.graph, item.operators, item.session is not None, item.remark) for item in runs]

    return run


def test_a_graph_without_an_engine_runs_alone(each: Any) -> None:
    assert each(None) == each({}) == [("model.onnx", "ONNX Runtime's", True, "")]


def test_both_graphs_run_that_of_the_engine_first(each: Any, inferences: list[tuple[Path, Any]]) -> None:
    assert each({"onnxruntime": onnxruntime.__version__}) == [
        ("engine.onnx", "ONNX Runtime's", True, ""),
        ("model.onnx", "ONNX Runtime's", True, ""),
    ]
    assert [graph for graph, _ in inferences] == [Path("engine/engine.onnx"), Path("engine/model.onnx")]
    levels = [options.graph_optimization_level for _, options in inferences]
    assert levels == [Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_ALL]


def test_whose_operators_compute_each_graph_is_said(each: Any, registered: list[str]) -> None:
    own, plain = each({"kernels": "llmc.cpu"})
    assert own == ("engine.onnx", "llmc's own, the others ONNX Runtime's", True, "")
    assert plain == ("model.onnx", "ONNX Runtime's", True, "")
    assert registered == ["kernels.so"], "of the engine's own graph alone"


def test_a_graph_that_does_not_run_here_says_why(each: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise KernelsUnavailable("no C compiler is installed")

    monkeypatch.setattr(onnxruntime_engine, "kernel_library", none)
    plain = ("model.onnx", "ONNX Runtime's", True, "")
    said = "running without llmc's CPU kernels, slower: no C compiler is installed"
    assert each({"kernels": "llmc.cpu"}) == [("engine.onnx", "", False, said), plain]
    said = f"built by onnxruntime 1.0, opened by {onnxruntime.__version__}: optimizing again"
    assert each({"onnxruntime": "1.0"}) == [("engine.onnx", "", False, said), plain]


def test_only_one_graph_is_open_at_a_time(each: Any, inferences: list[tuple[Path, Any]]) -> None:
    """A large model may fit once."""
    made = manifest(details={"onnxruntime": onnxruntime.__version__})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_engine, "open_artifact", lambda directory: SimpleNamespace(manifest=made))
        runs = OnnxRuntimeCpu().open_each(Path("engine"), threads=2)
        next(runs)
        assert len(inferences) == 1
        next(runs)
        assert len(inferences) == 2


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "recorded", "expected"),
    [(5, 3, 5), (None, 3, 3), (None, None, 7), (5, None, 5), (None, 9, 8), (9, 3, 9)],
)
def test_threads(
    opened: Any, monkeypatch: pytest.MonkeyPatch, asked: int | None, recorded: int | None, expected: int
) -> None:
    """Those that are asked for, else the manifest's where as many can run, else one per core."""
    monkeypatch.setattr(processors, "physical_cores", lambda: 7)
    monkeypatch.setattr(processors, "most_threads", lambda: 8)
    _, options, session = opened(details={}, threads=recorded, asked=asked)
    assert options.intra_op_num_threads == session.info.threads == expected
    assert options.inter_op_num_threads == 1


@pytest.mark.parametrize("details", [None, {}, {"onnxruntime": onnxruntime.__version__}])
def test_threads_spin_for_who_waits_for_tokens_alone(
    inferences: list[tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch, details: dict[str, Any] | None
) -> None:
    made = manifest(details=details)
    monkeypatch.setattr(onnxruntime_engine, "open_artifact", lambda directory: SimpleNamespace(manifest=made))

    def may_spin() -> bool:
        return entry(inferences[-1][1], "session.intra_op.allow_spinning") != "0"

    OnnxRuntimeCpu().open(Path("engine"))
    assert may_spin()
    for _ in OnnxRuntimeCpu().open_each(Path("engine")):
        assert not may_spin()
    onnxruntime_engine.open_graph(Path("engine"))
    assert not may_spin()


def entry(options: Any, key: str) -> str:
    """What is set; empty where nothing is."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


def test_activations_are_not_rounded(opened: Any) -> None:
    _, options, _ = opened(details={})
    assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "1"  # float32


def test_a_build_optimizes_for_any_processor(inferences: list[tuple[Path, Any]], tmp_path: Path) -> None:
    graphs = tmp_path / "graph"
    built = OnnxRuntimeCpu().build(BuildRequest(graphs / "model.onnx", None, tmp_path))
    ((graph, options),) = inferences
    assert built == BuiltEngine(tmp_path / "engine.onnx", {"onnxruntime": onnxruntime.__version__})
    assert graph == graphs / "model.onnx"
    assert options.optimized_model_filepath == str(tmp_path / "engine.onnx")
    assert options.graph_optimization_level == Level.ORT_ENABLE_EXTENDED
    assert options.get_session_config_entry("session.disable_prepacking") == "1"


def test_a_build_leaves_the_graph_of_own_operators_alone(inferences: list[tuple[Path, Any]], tmp_path: Path) -> None:
    built = OnnxRuntimeCpu().build(BuildRequest(tmp_path / "model.onnx", tmp_path / "engine.onnx", tmp_path))
    assert built == BuiltEngine(tmp_path / "engine.onnx", {"kernels": "llmc.cpu"})
    ((graph, options),) = inferences
    assert (graph.name, options.optimized_model_filepath) == ("model.onnx", "")
    assert options.graph_optimization_level == Level.ORT_DISABLE_ALL, "a check folds nothing"


def test_a_graph_that_onnx_runtime_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"^ONNX Runtime [\d.]+ refuses model\.onnx: .+") as raised:
        OnnxRuntimeCpu().build(BuildRequest(tmp_path / "model.onnx", None, tmp_path / "out"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("installed", "older"), [("1.30.2", True), ("1.32.0", False), ("2.0.1", False)])
def test_an_older_runtime_than_the_graph_is_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, older: bool
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    monkeypatch.setattr(onnxruntime, "__version__", installed)
    with pytest.raises(EngineError, match=rf"^ONNX Runtime {installed} refuses model\.onnx: .+") as raised:
        OnnxRuntimeCpu().build(BuildRequest(tmp_path / "model.onnx", None, tmp_path / "out"))
    cure = "; graphs are made for ONNX Runtime 1.32: install that or a newer one, or optimize again with --for-"
    assert (cure in str(raised.value)) == older


# --- what kind of graph ---------------------------------------------------------------------------------------------


def test_the_session_obeys_the_contract(opened: Any) -> None:
    """Rows of two lengths: a graph that concatenates wants its cache padded on the left, by an unfused session."""
    _, _, session = opened(details={})
    session.reset(2, 8)
    session.forward(np.array([[1, 2], [3, 0]]), np.array([2, 1]))
    last = session.forward(np.array([[1], [2]])).host()[1, 0].tolist()
    assert last[-2:] == [1010 * 3, 1010 * 2 + 101]
    _, _, session = opened(details={}, contract=Contract(ragged_chunks=False))
    session.reset(2, 8)
    session.forward(np.array([[1, 2], [3, 0]]), np.array([2, 1]))
    with pytest.raises(EngineError, match="rows of unequal length can only be continued"):
        session.forward(np.array([[1, 2], [3, 0]]), np.array([2, 1]))


def test_what_is_said_of_an_engine() -> None:
    made = manifest(details={"onnxruntime": "1"}, max_context=77)
    info = engine_info(made, "onnxruntime-cpu", 3, load(GROWING))  # type: ignore[arg-type]
    assert (info.runtime, info.threads, info.max_context) == ("onnxruntime-cpu", 3, 77)
    assert info.details == {"onnxruntime": "1"}
    none = "int4 asked for, none made: 3 float"
    assert engine_info(manifest(weights_label=none), "x", 1, load(GROWING)).precision == none  # type: ignore[arg-type]
    on_gpu = engine_info(manifest(), "x", 0, load(GROWING), device="cuda:0 H")  # type: ignore[arg-type]
    assert (on_gpu.max_context, on_gpu.details["device"]) == (1 << 30, "cuda:0 H")


@pytest.mark.parametrize("outputs", [[], [SimpleNamespace(shape=[1, "sequence"])]])
def test_a_graph_without_logits_is_none_of_ours(outputs: list[SimpleNamespace]) -> None:
    damaged = SimpleNamespace(get_outputs=lambda: outputs, get_inputs=list)
    with pytest.raises(EngineError, match=r"gives no logits .*; compile it again"):
        engine_info(manifest(), "x", 1, damaged)  # type: ignore[arg-type]
