"""Tiny random models as TensorRT's builder gets them, made once per test run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir

from llmc.compiler.artifact.manifest import EngineRecord, Manifest
from llmc.compiler.base.contract import Contract
from llmc.compiler.graph.write_model import write_model
from llmc.passes.pipeline import GraphRequest, standard_passes, tensorrt_engine_passes
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.runner import run_passes
from llmc.runtimes.device.interface import HostDevice
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.tensorrt.bindings import BINDINGS, Library
from llmc.runtimes.tensorrt.engine import open_on

from ...end_to_end.tiny import shared_model, shared_portable
from ...shared import Shared
from .fake_tensorrt import FakeModule, write_engine

Float = Literal["fp32", "fp16", "bf16"]
CHUNK, MAX_BATCH = 8, 4
CAPACITIES = (32, 128)


@cache
def exported(model_type: str = "llama", **config: Any) -> tuple[Path, Path]:
    """transformers' own directory of a tiny model, and the portable graph's."""
    shared = Shared.current()
    return shared_model(shared, model_type, **config), shared_portable(shared, model_type, **config)


def graph_directory(
    folder: Path,
    activations: Float = "fp32",
    quantization: QuantizeWeights | None = None,
    model_type: str = "llama",
    logits: Literal["last", "all"] = "last",
    config: tuple[tuple[str, Any], ...] = (),
) -> Path:
    """A directory with ``model.onnx``, ``engine.onnx`` and the weights."""
    _, portable = exported(model_type, **dict(config))
    weights = "-".join(quantization.plan.values()) if quantization else ""
    options = "-".join(f"{key}{value}" for key, value in config)
    made = folder / f"trt-{model_type}-{activations}-{weights}-{logits}-{options}"
    if made.exists():
        return made
    made.mkdir()
    model = ir.load(portable / "model.onnx")
    run_passes(model, standard_passes(GraphRequest(128, activations, logits=logits, quantization=quantization)))
    write_model(model, made, lambda done, total: None)
    model = ir.load(made / "model.onnx")
    run_passes(model, tensorrt_engine_passes())
    onnx.save_model(ir.to_proto(model), made / "engine.onnx")
    return made


def manifest_of(folder: Path, plan: CapacityPlan, logits: Literal["last", "all"] = "last") -> Manifest:
    """As a build would have written it."""
    from llmc.compiler.artifact.artifact import open_artifact

    portable = open_artifact(exported()[1]).manifest
    record = EngineRecord("tensorrt-rtx", None, {"version": "9.9", "plan": plan.to_json()})
    return replace(
        portable,
        kind="engine",
        target="tensorrt-rtx",
        engine=record,
        contract=Contract(rows="slot0", lengths="inputs", cache="shared", logits=logits),
        max_context=128,
    )


def write_fake_engines(
    folder: Path,
    where: Path,
    logits: Literal["last", "all"] = "last",
    capacities: tuple[int, ...] = CAPACITIES,
    *,
    stripped: bool = False,
) -> CapacityPlan:
    """Engines of a tiny Llama for the stand-in, with the graph beside them."""
    made = graph_directory(folder, logits=logits)
    for name in ("engine.onnx", "model.onnx.data"):
        if not (where / name).exists():
            (where / name).symlink_to(made / name)
    buckets = tuple(Bucket(capacity, f"engine_{capacity}.plan", 1) for capacity in capacities)
    for bucket in buckets:
        write_engine(where / bucket.file, made / "engine.onnx", bucket.capacity, MAX_BATCH, CHUNK, stripped=stripped)
    return CapacityPlan(buckets, MAX_BATCH, CHUNK, capacities[-1])


def open_fake(
    folder: Path,
    where: Path,
    module: FakeModule,
    device: HostDevice | None = None,
    logits: Literal["last", "all"] = "last",
    capacities: tuple[int, ...] = CAPACITIES,
) -> DeviceSession:
    """A session of a tiny Llama whose engines the stand-in runs."""
    plan = write_fake_engines(folder, where, logits, capacities)
    library = Library(BINDINGS["tensorrt-rtx" if module.is_rtx else "tensorrt"], module)
    return open_on(device or HostDevice(), library, where, manifest_of(folder, plan, logits), plan)
