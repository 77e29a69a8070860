"""TensorRT-RTX's builder itself: what it is given, what is refused before or by it, and how it is stopped."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import EngineOptions
from llmc.compiler.base.progress import NoProgress
from llmc.runtimes.tensorrt import builder as builder_module
from llmc.runtimes.tensorrt.bindings import Library, open_library
from llmc.runtimes.tensorrt.build_options import BuildOptions
from llmc.runtimes.tensorrt.builder import build_engines
from llmc.runtimes.tensorrt.engine_graph import EngineGraph, read_engine_graph
from llmc.runtimes.tensorrt.receipt import Receipt

from ...passes.plans import in_standard
from ...tensorrt_rtx import needs_tensorrt_rtx
from .tiny_graph import graph_directory

pytestmark = needs_tensorrt_rtx
PAST = "past_key_values.0.key"
ASKED = EngineOptions(max_batch=2, chunk=64, capacities=(32, 128))


class Watched:
    """Progress that is kept."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.steps: list[int] = []

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        self.stages.append((stage, total))

    def advance(self, done: int) -> None:
        self.steps.append(done)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builder")


@pytest.fixture
def library() -> Library:
    return open_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def graph(folder: Path) -> EngineGraph:
    return read_engine_graph(graph_directory(folder, "fp16") / "engine.onnx")


def options(precision: str | None = None, **asked: Any) -> BuildOptions:
    return BuildOptions(EngineOptions(**{"capacities": (32,), **asked}), None, precision)


def test_one_engine_per_capacity_with_two_profiles(
    library: Library, graph: EngineGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = []
    original = builder_module._Build._profile

    def keep(self: Any, network: Any, index: int) -> Any:
        made = original(self, network, index)
        profiles.append({name: made.get_shape(name) for name in ("input_ids", "past_lengths", PAST)})
        return made

    monkeypatch.setattr(builder_module._Build, "_profile", keep)
    watched = Watched()
    built = build_engines(library, graph, tmp_path, BuildOptions(ASKED, 128, "fp16"), watched)
    assert built.plan.capacities == (32, 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine_128.plan", "engine_32.plan"]
    assert all((tmp_path / bucket.file).stat().st_size == bucket.nbytes > 100_000 for bucket in built.plan.buckets)
    # Prefill of 32 slots in chunks of no more, of 128 in chunks of 64; decode with one token.
    assert [tuple(shapes["input_ids"][2]) for shapes in profiles] == [(2, 32), (2, 1), (2, 64), (2, 1)]
    assert all(tuple(shapes["input_ids"][0]) == (1, 1) for shapes in profiles)
    assert [tuple(shapes[PAST][2]) for shapes in profiles] == [(2, 2, 32, 16)] * 2 + [(2, 2, 128, 16)] * 2
    assert [stage for stage, total in watched.stages if total] == [
        "Building TensorRT-RTX engine for 32 slots",
        "Building TensorRT-RTX engine for 128 slots",
    ]
    # The last step is not announced as done.
    (total,) = {total for _, total in watched.stages if total}
    assert watched.steps == [*range(1, total)] * 2


def test_the_precision_that_was_asked_for(library: Library, folder: Path, tmp_path: Path) -> None:
    quantization = in_standard("int8", "int8", 32)
    graph = read_engine_graph(graph_directory(folder, "fp16", quantization) / "engine.onnx")
    built = build_engines(library, graph, tmp_path, options(precision="int8", strict=True), NoProgress())
    assert built.receipt.findings == ()
    with pytest.raises(EngineError, match=r"multiplies weights in int8, asked for fp16; .* \(15 in all\)"):
        build_engines(library, graph, tmp_path, options(precision="fp16", strict=True), NoProgress())
    lax = build_engines(library, graph, tmp_path, options(precision="fp16"), NoProgress())
    assert len(lax.receipt.findings) == 15


def test_eight_bit_floats_are_not_for_every_gpu(library: Library, folder: Path, tmp_path: Path) -> None:
    quantization = in_standard("fp8", "int8", 32)
    graph = read_engine_graph(graph_directory(folder, "fp16", quantization) / "engine.onnx")
    with pytest.raises(EngineError, match=r"fp8_e4m3; fp8 weights need a GPU of compute capability 8\.9 or later"):
        build_engines(library, graph, tmp_path, options("fp8", capabilities=("8.0",)), NoProgress())
    assert not list(tmp_path.iterdir())
    built = build_engines(library, graph, tmp_path, options("fp8", capabilities=("8.9", "12.0")), NoProgress())
    assert built.receipt.products["fp8 x fp16"] == 14
    assert built.receipt.findings == ()


def test_weights_that_the_builder_unpacks_are_found(
    library: Library, graph: EngineGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder_module, "find_unpacked", lambda receipt, size: f"{size} bytes are too many")
    built = build_engines(library, graph, tmp_path, options(), NoProgress())
    assert isinstance(built.receipt, Receipt)
    assert built.receipt.findings == (f"{built.plan.buckets[0].nbytes} bytes are too many",)
    with pytest.raises(EngineError, match="bytes are too many"):
        build_engines(library, graph, tmp_path, options(strict=True), NoProgress())


def test_a_node_that_the_parser_refuses(library: Library, graph: EngineGraph, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    node.attribute.append(onnx.helper.make_attribute("softcap", 5.0))
    with pytest.raises(EngineError) as raised:
        build_engines(library, replace(graph, model=model), tmp_path, options(), NoProgress())
    assert f"TensorRT-RTX {library.version} refuses the graph: Attention {node.name}: " in str(raised.value)
    assert "softcap" in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"capabilities": ("9.0",)}, "cannot build for compute capability 9.0; it can for 7.5, 8.0, 8.6, 8.9, 12.0"),
        ({"strip_weights": True}, "cannot build the engine: .*needs a GPU of the kind it is meant for"),
    ],
)
def test_what_it_cannot_build_here(
    library: Library, graph: EngineGraph, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        build_engines(library, graph, tmp_path, options(**asked), NoProgress())
    assert not list(tmp_path.iterdir())


def test_an_interrupt_stops_the_builder(
    library: Library, graph: EngineGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        """Stops when the builder has begun."""

        def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
            if total:
                begun.set()

        def advance(self, done: int) -> None:
            time.sleep(0.3)

    begun, before = threading.Event(), {thread.name for thread in threading.enumerate()}
    waited = threading.Thread.join

    def join(self: threading.Thread, timeout: float | None = None) -> None:
        waited(self, timeout)
        if timeout is not None and begun.is_set():
            begun.clear()
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", join)
    with pytest.raises(KeyboardInterrupt):
        build_engines(library, graph, tmp_path, options(), Interrupted())
    assert {thread.name for thread in threading.enumerate()} == before
    assert not list(tmp_path.iterdir())
