"""Opening an engine: what is refused before a GPU is asked, and weights that lie beside a stripped engine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.manifest import EngineRecord, Manifest
from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.compiler.base.options import CompileOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.compiler.driver.golden_recording import random_prompts, record_golden
from llmc.compiler.driver.verification import measure
from llmc.runtimes.device import cuda
from llmc.runtimes.device.interface import HostDevice
from llmc.runtimes.engines import get_engine, open_session
from llmc.runtimes.memory.capacity_plan import CapacityPlan
from llmc.runtimes.tensorrt import engine as engine_module
from llmc.runtimes.tensorrt.bindings import BINDINGS, Library
from llmc.runtimes.tensorrt.engine import open_on, read_plan
from llmc.runtimes.tensorrt.file_cache import FileCache

from ..tiny_engine import PROMPTS
from .fake_tensorrt import FakeModule
from .tiny_graph import manifest_of, open_fake, write_fake_engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture
def library() -> Library:
    return Library(BINDINGS["tensorrt-rtx"], FakeModule())


@pytest.fixture
def plan(folder: Path, tmp_path: Path) -> CapacityPlan:
    return write_fake_engines(folder, tmp_path)


@pytest.fixture
def manifest(folder: Path, tmp_path: Path, plan: CapacityPlan) -> Manifest:
    """Written to the directory that holds the engine files."""
    return write_manifest(tmp_path, manifest_of(folder, plan))


def changed(manifest: Manifest, **details: Any) -> Manifest:
    assert manifest.engine is not None
    record = EngineRecord("tensorrt-rtx", None, {**manifest.engine.details, **details})
    return replace(manifest, engine=record)


def test_the_plan_of_an_engine(tmp_path: Path, library: Library, manifest: Manifest, plan: CapacityPlan) -> None:
    assert read_plan(tmp_path, manifest, library) == plan
    graph = replace(manifest, kind="target", engine=None)
    with pytest.raises(EngineError, match=r"holds a graph for TensorRT-RTX and no engine yet; make one: llmc build"):
        read_plan(tmp_path, graph, library)
    older = changed(manifest, version="1.2")
    with pytest.raises(EngineError, match=r"was built by TensorRT-RTX 1\.2, and 9\.9 is installed; build it again"):
        read_plan(tmp_path, older, library)


def test_a_compile_asks_for_the_library_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    options = CompileOptions(optimize=OptimizeOptions(target="tensorrt"))
    with pytest.raises(MissingDependencyError, match="TensorRT is not installed; pip install"):
        compile_model("no such model", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_without_a_gpu(tmp_path: Path, library: Library, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "open_library", lambda name: library)
    monkeypatch.setattr(cuda, "cuda_devices", lambda: 0)
    for opener in (open_session, get_engine("tensorrt-rtx").open):
        with pytest.raises(EngineError, match="is an engine for a CUDA GPU, and there is none here") as raised:
            opener(tmp_path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("capability", "runs"), [("9.0", False), ("8.9", True)])
def test_on_a_gpu(
    tmp_path: Path,
    library: Library,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    runs: bool,
) -> None:
    device = HostDevice()
    device.compute_capability = capability  # type: ignore[attr-defined]
    monkeypatch.setattr(engine_module, "open_library", lambda name: library)
    monkeypatch.setattr(cuda, "cuda_devices", lambda: 1)
    monkeypatch.setattr(engine_module, "CudaDevice", lambda: device)
    monkeypatch.setattr(engine_module, "_samplers", lambda *_: None)
    if not runs:
        with pytest.raises(EngineError, match=r"does not run on GPUs of compute capability 9\.0"):
            open_session(tmp_path)
        return
    session = open_session(tmp_path)
    session.reset(1, 20)
    assert session.forward(np.array(PROMPTS[:1], np.int64)).argmax().shape == (1,)
    session.close()


@pytest.mark.parametrize(("context", "expected"), [(None, 128), (100, 100), (128, 128), (4096, 128)])
def test_the_context_is_what_graph_and_engines_hold(
    tmp_path: Path, library: Library, manifest: Manifest, plan: CapacityPlan, context: int | None, expected: int
) -> None:
    session = open_on(HostDevice(), library, tmp_path, replace(manifest, max_context=context), plan)
    assert session.info.max_context == expected
    session.close()


def test_kernels_are_kept_for_one_engine_and_one_version(
    tmp_path: Path,
    library: Library,
    manifest: Manifest,
    plan: CapacityPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of another build or of another release are never found."""

    class Gpu(HostDevice):
        """The host under another name."""

        ort_name = "cuda"

    names: list[str] = []

    def in_home(runtime: str, name: str) -> FileCache:
        names.append(f"{runtime}/{name}")
        return FileCache(tmp_path / "home" / name)

    monkeypatch.setattr(engine_module.FileCache, "in_home", in_home)
    file, other = plan.buckets[0].file, plan.buckets[1].file
    again = replace(manifest, files={**manifest.files, file: manifest.files["engine.onnx"]})
    elsewhere = replace(manifest, files={**manifest.files, other: manifest.files["engine.onnx"]})
    newer = Library(library.binding, FakeModule())
    newer.module.__version__ = "9.10"
    for using, opened in ((library, manifest), (library, again), (library, elsewhere), (newer, manifest)):
        open_on(Gpu(), using, tmp_path, opened, plan).close()
    assert len(names) == 4
    assert len(set(names)) == 3
    assert names[0] == names[2]
    assert all(name.startswith("tensorrt-rtx/9.") for name in names)
    open_on(HostDevice(), library, tmp_path, manifest, plan).close()
    assert len(names) == 4


@pytest.mark.parametrize("max_batch", [1, 2, 4])
def test_verification_keeps_to_the_rows_that_an_engine_was_built_for(
    folder: Path, tmp_path: Path, library: Library, manifest: Manifest, plan: CapacityPlan, max_batch: int
) -> None:
    reference = open_fake(folder, tmp_path, FakeModule())
    golden = record_golden(reference, random_prompts(160))
    session = open_on(HostDevice(), library, tmp_path, manifest, replace(plan, max_batch=max_batch))
    assert session.info.max_batch == max_batch
    measured = measure(session, golden)
    assert measured.logit_error < 1e-4
    assert measured.top1 == 1
    widths = {shape[0] for _, _, shape in library.module.runs}
    assert widths == {1: {1}, 2: {2}, 4: {3}}[max_batch]
    other = replace(golden, tokens=(golden.tokens + 1) % 160, top_logits=golden.top_logits + 1)
    assert measure(session, other).top1 < 0.5
    session.close()


def test_a_stripped_engine_gets_its_weights_from_the_graph(
    folder: Path, tmp_path: Path, library: Library, manifest: Manifest, plan: CapacityPlan
) -> None:
    whole = open_fake(folder, tmp_path, FakeModule())
    whole.reset(1, 20)
    expected = whole.forward(np.array(PROMPTS[:1], np.int64)).host()
    stripped = replace(plan, stripped=True)
    write_fake_engines(folder, tmp_path, stripped=True)
    without = open_on(HostDevice(), library, tmp_path, manifest, plan)
    without.reset(1, 20)
    with pytest.raises(EngineError, match="the engine has no weights"):
        without.forward(np.array(PROMPTS[:1], np.int64))
    session = open_on(HostDevice(), library, tmp_path, manifest, stripped)
    for capacity in (20, 100):
        session.reset(1, capacity)
        np.testing.assert_allclose(session.forward(np.array(PROMPTS[:1], np.int64)).host(), expected, atol=1e-5)
    assert library.module.refitted == [32, 128]
    session.close()
