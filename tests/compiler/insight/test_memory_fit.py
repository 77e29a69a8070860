"""Whether an engine's memory is free: on the GPU for cuda, in RAM for the others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import write_manifest
from llmc.compiler.artifact.manifest import EngineRecord, Manifest
from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.options import DEFAULT_CONTEXT
from llmc.compiler.insight import memory_fit
from llmc.compiler.insight.memory_fit import check_memory
from llmc.runtimes.machine.fingerprint import GpuDescription
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.memory.plan import CUDA_ALLOWANCE

MODEL = """<ir_version: 10, opset_import: ["" : 23, "test" : 1]>
tiny (int64[batch, sequence] input_ids, float16[batch, 2, capacity, 8] "past_key_values.0.key")
 => (float16[batch, 1, 64] logits, float16[batch, 2, capacity, 8] "present.0.key")
{ logits, "present.0.key" = test.Decoder(input_ids, "past_key_values.0.key") }"""
CACHE = 2 * 8 * 2
H100 = GpuDescription("NVIDIA H100", 80 << 30, compute_capability="9.0", free_bytes=70 << 30)


@pytest.fixture
def engine(tmp_path: Path, manifest: Manifest) -> Path:
    """A CUDA engine with a shared cache and a context of 128."""
    record = EngineRecord(runtime="onnxruntime-cuda", threads=None, details={})
    ir.save(ir.from_onnx_text(MODEL), tmp_path / "model.onnx")
    write_manifest(tmp_path, dataclasses.replace(manifest, target="cuda", engine=record))
    return tmp_path


@pytest.fixture
def cpu_engine(engine: Path, manifest: Manifest) -> Path:
    write_manifest(engine, manifest)
    return engine


def test_it_fits_on_the_first_gpu(engine: Path) -> None:
    fit = check_memory(engine, (H100, dataclasses.replace(H100, free_bytes=0)), context=100, batch=2)
    assert fit.problem is None
    assert fit.where == "GPU 0 (NVIDIA H100)"
    assert fit.free_bytes == 70 << 30
    assert fit.plan.kv_cache == 100 * 2 * CACHE
    assert fit.plan.workspace == CUDA_ALLOWANCE
    assert json.loads(json.dumps(fit.to_json()))["fits"] is True


def test_the_default_is_the_engines_context(engine: Path) -> None:
    assert check_memory(engine, (H100,)).plan.context == 128
    with pytest.raises(UsageError, match="129"):
        check_memory(engine, (H100,), context=129)


def test_without_a_longest_context_the_usual_one_is_planned(engine: Path, manifest: Manifest) -> None:
    write_manifest(engine, dataclasses.replace(manifest, max_context=None))
    assert check_memory(engine, ()).plan.context == DEFAULT_CONTEXT
    assert check_memory(engine, (), context=5, batch=3, chunk=2).plan.kv_cache == 3 * 5 * CACHE
    assert check_memory(engine, (), context=5, batch=3, chunk=2).plan.chunk == 2


def test_it_does_not_fit(engine: Path) -> None:
    full = dataclasses.replace(H100, free_bytes=CUDA_ALLOWANCE)
    fit = check_memory(engine, (full,), batch=1000, chunk=1)
    assert fit.problem is not None
    free = f"{CUDA_ALLOWANCE / 2**20:.1f} MiB"
    assert f"GPU 0 (NVIDIA H100) has {free} free; use a smaller --context" in fit.problem
    assert fit.to_json()["fits"] is False


def test_a_gpu_without_free_memory_is_known_to_have_none(engine: Path) -> None:
    fit = check_memory(engine, (dataclasses.replace(H100, free_bytes=0),))
    assert fit.free_bytes == 0
    assert fit.problem is not None
    assert "does not say" not in fit.problem


@pytest.mark.parametrize(("limit", "free"), [(1 << 20, 1 << 30), (1 << 30, 1 << 20)])
def test_a_containers_limit_counts(cpu_engine: Path, monkeypatch: pytest.MonkeyPatch, limit: int, free: int) -> None:
    """The machine may have more free than this process may use, and less than it has in all."""
    monkeypatch.setattr(memory_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(memory_fit, "machine_fingerprint", lambda: SimpleNamespace(memory_bytes=limit))
    assert check_memory(cpu_engine, ()).free_bytes == 1 << 20


def test_a_tensorrt_engine_needs_a_gpu(engine: Path, manifest: Manifest) -> None:
    plan = CapacityPlan((Bucket(64, "engine_64.plan", 5000),), 2, 16, 64)
    record = EngineRecord("tensorrt-rtx", None, {"plan": plan.to_json()})
    write_manifest(engine, dataclasses.replace(manifest, target="tensorrt-rtx", engine=record))
    fit = check_memory(engine, (H100,))
    assert (fit.where, fit.plan.context, fit.plan.weights) == ("GPU 0 (NVIDIA H100)", 64, 5000)
    assert check_memory(engine, ()).problem == f"{engine} runs on a GPU, and nvidia-smi finds no NVIDIA GPU here"


def test_no_gpu(engine: Path) -> None:
    problem = check_memory(engine, ()).problem
    assert problem is not None
    assert "nvidia-smi finds no NVIDIA GPU" in problem


def test_free_memory_that_is_not_told(engine: Path) -> None:
    fit = check_memory(engine, (dataclasses.replace(H100, free_bytes=None),))
    assert fit.problem is not None
    assert "does not say" in fit.problem
    assert fit.to_json()["fits"] is False


@pytest.mark.parametrize(("free", "fits"), [(1 << 30, True), (1000, False)])
def test_a_cpu_engine_needs_ram(cpu_engine: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool) -> None:
    monkeypatch.setattr(memory_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=1 << 40))
    fit = check_memory(cpu_engine, (H100,))
    assert (fit.problem is None) == fits
    assert fit.free_bytes == free
    assert fit.where == "this machine"
    assert fit.plan.workspace == 0


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        check_memory(tmp_path / "nothing", ())
