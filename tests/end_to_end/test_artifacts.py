"""The same input gives the same bytes, whichever way it goes; tiny Llamas of every type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.base.contract import FloatType
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions, Precision
from llmc.compiler.base.targets import get_target
from llmc.compiler.driver.driver import build, compile_model, export, optimize, verify
from llmc.runtimes.engines import open_session

from .oracle import load_eager, whole_logits
from .tiny import SIZES, save_model

CPU_PRECISIONS = get_target("cpu").precisions


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("artifacts") / "hf", head_dim=32)


@pytest.fixture(scope="module")
def portable(source: Path) -> Callable[[FloatType], Path]:
    """The exported model, by dtype."""

    def make(dtype: FloatType) -> Path:
        path = source.parent / f"portable-{dtype}"
        if not path.exists():
            export(str(source), path, ExportOptions(dtype=dtype))
        return path

    return make


@pytest.fixture(scope="module")
def compiled(source: Path) -> Callable[[Precision], Path]:
    """The engine that compile makes in one go, by precision."""

    def make(precision: Precision) -> Path:
        path = source.parent / f"engine-{precision}"
        if not path.exists():
            compile_model(str(source), path, CompileOptions(optimize=OptimizeOptions(precision=precision)))
        return path

    return make


def contents(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*")}


def logits_of(directory: Path) -> np.ndarray:
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (1, 40))
    session = open_session(directory, threads=1)
    try:
        session.reset(1, 40)
        return session.forward(ids).host()[0].copy()
    finally:
        session.close()


@pytest.mark.parametrize("precision", CPU_PRECISIONS)
def test_compiling_twice_gives_the_same_bytes(
    source: Path, compiled: Callable[[Precision], Path], tmp_path: Path, precision: Precision
) -> None:
    compile_model(str(source), tmp_path / "again", CompileOptions(optimize=OptimizeOptions(precision=precision)))
    assert contents(tmp_path / "again") == contents(compiled(precision))


def test_another_process_gives_the_same_bytes(
    source: Path, compiled: Callable[[Precision], Path], tmp_path: Path
) -> None:
    """Sets of strings are walked in another order there."""
    import torch

    program = "from llmc.compiler.cli.app import main; main()"
    arguments = ["compile", str(source), "-o", str(tmp_path / "again"), "--precision", "int4", "--quiet"]
    # Golden data are sums in the order that the number of torch's threads gives.
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", program, *arguments], env=environment, check=True)
    assert contents(tmp_path / "again") == contents(compiled("int4"))


@pytest.mark.parametrize("precision", CPU_PRECISIONS)
def test_the_long_way_gives_the_same_engine(
    portable: Callable[[FloatType], Path], compiled: Callable[[Precision], Path], tmp_path: Path, precision: Precision
) -> None:
    """export, optimize, build against compile: the same weights, byte for byte, and the same logits."""
    optimize(portable("fp32"), tmp_path / "target", OptimizeOptions(precision=precision))
    build(tmp_path / "target", tmp_path / "engine")
    for name in ("model.onnx.data", "golden.npz", "config.json"):
        assert (tmp_path / "engine" / name).read_bytes() == (compiled(precision) / name).read_bytes()
    assert np.array_equal(logits_of(tmp_path / "engine"), logits_of(compiled(precision)))
    assert verify(tmp_path / "engine").passed


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("precision", CPU_PRECISIONS)
def test_half_precision_goes_on_to_the_cpu(
    portable: Callable[[FloatType], Path], tmp_path: Path, dtype: FloatType, precision: Precision
) -> None:
    optimize(portable(dtype), tmp_path / "target", OptimizeOptions(precision=precision, strict=True))
    build(tmp_path / "target", tmp_path / "engine")
    assert verify(tmp_path / "engine").passed
    optimize(portable("fp32"), tmp_path / "exact", OptimizeOptions(precision=precision))
    exact = logits_of(tmp_path / "exact")
    largest = float(np.abs(exact).max())
    # Quantized weights move by whole steps where rounding moved them over an edge.
    bound = {"fp16": 2e-3, "bf16": 2e-2}[dtype] if precision == "fp32" else 0.1
    assert float(np.abs(logits_of(tmp_path / "engine") - exact).max()) < bound * largest


def test_half_the_bytes(portable: Callable[[FloatType], Path]) -> None:
    sizes = {dtype: (portable(dtype) / "model.onnx.data").stat().st_size for dtype in get_args(FloatType)}
    assert sizes["fp16"] == sizes["bf16"] < 0.7 * sizes["fp32"]


def test_a_float16_graph_runs_as_it_is(source: Path, portable: Callable[[FloatType], Path]) -> None:
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], 40).tolist()
    expected = whole_logits(load_eager(source), ids)
    error = float(np.abs(logits_of(portable("fp16")) - expected).max())
    assert error < 1e-2 * float(np.abs(expected).max())
    assert open_artifact(portable("fp16")).manifest.measured
