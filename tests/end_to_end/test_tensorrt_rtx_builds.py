"""TensorRT-RTX builds engines here, without a GPU: tiny models and SmolLM2-135M, each in the precision asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.options import EngineOptions, OptimizeOptions, Precision
from llmc.compiler.driver.driver import build, optimize

from ..shared import Shared
from ..tensorrt_rtx import needs_tensorrt_rtx
from .conftest import Built
from .tiny import shared_portable

pytestmark = needs_tensorrt_rtx
CAPACITY = 64


@dataclass(frozen=True)
class Architecture:
    """A tiny model, how many matrix products it has with weights, and how it is built."""

    model_type: str
    products: int
    config: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "fp16"


LAYERS = 2
ARCHITECTURES = {
    "llama, int4, tied": Architecture(
        "llama", 7 * LAYERS + 1, config={"tie_word_embeddings": True}, precision="int4"
    ),
    "qwen3, bf16": Architecture("qwen3", 7 * LAYERS + 1, config={"head_dim": 32}, precision="bf16"),
    "gemma3": Architecture("gemma3_text", 7 * LAYERS + 1, config={"head_dim": 32, "sliding_window": 8}),
    "mistral": Architecture("mistral", 7 * LAYERS + 1, config={"sliding_window": 8}),
    "phi3, int8": Architecture("phi3", 4 * LAYERS + 1, precision="int8"),
    "gpt2": Architecture("gpt2", 4 * LAYERS + 1, config={"n_positions": 128, "n_layer": LAYERS}),
}
WEIGHTS = {"fp16": "fp16", "bf16": "bf16", "int4": "int4", "int8": "int8"}
"""What is asked for and the type of the layers' weights."""
HEADS = {"fp16": "fp16", "bf16": "bf16", "int4": "int8", "int8": "int8"}
"""The type of the layers' weights and that of the output projection."""


def compile_tiny(shared: Shared, folder: Path, architecture: Architecture, **engine: Any) -> Path:
    portable = shared_portable(shared, architecture.model_type, **architecture.config)
    options = OptimizeOptions(target="tensorrt-rtx", precision=architecture.precision, strict=True)
    optimize(portable, folder / "target", options)
    settings = EngineOptions(**{"capacities": (CAPACITY,), "chunk": 16, "strict": True, **engine})
    build(folder / "target", folder / "engine", settings)
    return folder / "engine"


def receipt_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "receipt.json").read_text())
    return content


def details_of(manifest: Manifest) -> dict[str, Any]:
    assert manifest.engine is not None
    return dict(manifest.engine.details)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_tiny_model_builds(shared: Shared, name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    directory = compile_tiny(shared, tmp_path, architecture)
    manifest = open_artifact(directory).manifest
    (plan,) = details_of(manifest)["plan"]["buckets"]
    assert (plan["capacity"], plan["bytes"]) == (CAPACITY, (directory / plan["file"]).stat().st_size)
    receipt = receipt_of(directory)
    assert receipt["findings"] == []
    float_type = "bf16" if architecture.precision == "bf16" else "fp16"
    layers = WEIGHTS[architecture.precision]
    products = Counter({kinds: count for kinds, count in receipt["products"].items() if "offsets" not in kinds})
    # Attention multiplies activations alone, and is counted once.
    products[f"{float_type} x {float_type}"] -= LAYERS
    expected = Counter({f"{layers} x {float_type}": architecture.products - 1})
    expected[f"{HEADS[layers]} x {float_type}"] += 1
    assert +products == expected
    assert all(record["asked"] in {"", record["actual"][0]} for record in receipt["layers"])


def test_an_engine_for_each_capacity(shared: Shared, tmp_path: Path) -> None:
    architecture = Architecture("llama", 7 * LAYERS + 1)
    directory = compile_tiny(shared, tmp_path, architecture, capacities=(32, 128), max_batch=2)
    plan = details_of(open_artifact(directory).manifest)["plan"]
    assert [bucket["capacity"] for bucket in plan["buckets"]] == [32, 128]
    assert all((directory / bucket["file"]).stat().st_size == bucket["bytes"] for bucket in plan["buckets"])
    assert (plan["max_batch"], plan["chunk"], plan["max_context"]) == (2, 16, 128)


@pytest.mark.parametrize(
    ("precision", "types", "largest"),
    [("fp16", {"fp16"}, 330), ("int4", {"int4", "int8"}, 180)],
)
def test_smollm2_builds(
    smollm2: Built, precision: Precision, types: set[str], largest: float, tmp_path: Path
) -> None:
    target = smollm2.target(target="tensorrt-rtx", precision=precision)
    arguments = ["build", str(target), "-o", str(tmp_path / "engine"), "--capacity", "1024", "--strict", "--json"]
    # A process of its own: the peak of its memory is the build's.
    command = [sys.executable, "-c", "from llmc.compiler.cli.app import main; main()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    (bucket,) = shown["manifest"]["engine"]["details"]["plan"]["buckets"]
    receipt = shown["manifest"]["engine"]["details"]["receipt"]
    assert bucket["bytes"] < largest * 1e6
    assert bucket["bytes"] > sum(receipt["weight_bytes"].values())
    assert receipt["findings"] == []
    with_weights = {kinds.split(" x ")[0] for kinds in receipt["products"]} & {"fp16", "fp32", "int4", "int8"}
    assert types <= with_weights
    assert receipt["products"].get(f"{precision} x fp16", 0) >= 210
    assert shown["cost"]["peak_rss_bytes"] < 3e9
    assert shown["cost"]["seconds"] > 1
