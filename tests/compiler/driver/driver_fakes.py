"""A driver whose passes, builders and measuring only remember what they were given, and artifacts of a tiny graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.artifact.golden import Golden
from llmc.compiler.artifact.manifest import Manifest, PassRecord
from llmc.compiler.artifact.reports import PassOutcome, VerifyReport
from llmc.compiler.base.contract import Contract
from llmc.compiler.driver import driver
from llmc.runtimes.session.engine import BuildRequest, BuiltEngine

GRAPH = """<ir_version: 10, opset_import: ["" : 23, "test" : 1]>
tiny (int64[batch, chunk] input_ids, float[batch, 2, LENGTH, 8] "past_key_values.0.key")
 => (float[batch, 1, 64] logits, float[batch, 2, LENGTH, 8] "present.0.key")
<float[1] w = {0}>
{ logits, "present.0.key" = test.Decoder(input_ids, "past_key_values.0.key", w) }"""
WEIGHT_BYTES = 4 * 1024
OTHER_TOOLS = {"llmc": "0.0.1", "torch": "1.0"}


def graph(length: str = "capacity") -> ir.Model:
    """With one weight, large enough for the data file."""
    model = ir.from_onnx_text(GRAPH.replace("LENGTH", length))
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.arange(WEIGHT_BYTES // 4, dtype=np.float32), name="w")
    weight.shape = ir.Shape([WEIGHT_BYTES // 4])
    return model


def golden() -> Golden:
    zeros = np.zeros((1, 1), np.int64)
    logits = np.zeros((1, 1, 1), np.float32)
    return Golden(zeros, np.ones(1, np.int64), zeros, zeros[..., None], logits, logits[0], 64)


def outcome(name: str, fired: int = 1, *reasons: str, **contract: Any) -> PassOutcome:
    record = PassRecord(name, {}, True, {"fired": fired}, {"fired": 1 if fired else 9}, 2, 1, 0, 0)
    return PassOutcome(record, tuple((f"node{i}", reason) for i, reason in enumerate(reasons)), 1.0, contract)


@dataclass
class Remembered:
    """What the driver's helpers were given, and what they answer.

    Attributes:
        outcomes: Of the target's passes.
        engine_outcomes: Of the engine's passes; none: there are no such passes.
        calls: Who was called, in order.
        given: Their arguments, the last of each.
    """

    outcomes: list[PassOutcome] = field(default_factory=lambda: [outcome("Fuse", logits="last")])
    engine_outcomes: list[PassOutcome] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)

    def note(self, name: str, **arguments: Any) -> None:
        self.calls.append(name)
        self.given[name] = arguments


def install(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> Remembered:
    """Put helpers that only remember into the driver."""
    made = Remembered()

    def target_passes(
        geometry: Any, options: Any, capabilities: Any, golden: Golden | None = None, numbers: Any = None
    ) -> str:
        made.note("target_passes", options=options, golden=golden)
        return "target passes"

    def engine_passes(target: Manifest) -> str:
        return "engine passes" if made.engine_outcomes else ""

    def run_passes(model: ir.Model, passes: str, **options: Any) -> list[PassOutcome]:
        made.note(passes, **options)
        model.graph.name = passes
        return made.outcomes if passes == "target passes" else made.engine_outcomes

    def measure_and_record(
        staging: Path, manifest: Manifest, progress: Any, max_kl: float | None = None
    ) -> tuple[Manifest, Any]:
        assert open_artifact(staging).manifest == manifest, "what is measured is on the disk"
        made.note("measure", manifest=manifest, max_kl=max_kl)
        return manifest, VerifyReport(())

    class Builder:
        name = "runtime"

        def build(self, request: BuildRequest) -> BuiltEngine:
            files = {path.name for path in request.output.iterdir()}
            made.note("build", options=request.options, threads=request.threads, files=files)
            (request.output / "engine.plan").write_bytes(b"plan")
            return BuiltEngine(request.graph, {"capacity": 128})

    def get_engine(name: str) -> Builder:
        made.note("get_engine", runtime=name)
        return Builder()

    def capture_model(checkpoint: Any, options: Any, progress: Any) -> Any:
        made.note("capture", options=options)
        return SimpleNamespace(model=graph("past"), manifest=portable(manifest))

    def write_golden(
        captured: Any, directory: Path, options: Any, progress: Any, context: int | None = None
    ) -> str | None:
        made.note("write_golden", context=context)
        golden().save(directory)
        return "the model needs 32 GiB"

    def write_assets(directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(driver, "target_passes", target_passes)
    monkeypatch.setattr(driver, "engine_passes", engine_passes)
    monkeypatch.setattr(driver, "run_passes", run_passes)
    monkeypatch.setattr(driver, "measure_and_record", measure_and_record)
    monkeypatch.setattr(driver, "get_engine", get_engine)
    monkeypatch.setattr(driver, "capture_model", capture_model)
    monkeypatch.setattr(driver, "write_golden", write_golden)
    monkeypatch.setattr(driver, "write_genai_config", lambda *_: "it has states")
    checkpoint = SimpleNamespace(write_assets=write_assets, config=SimpleNamespace())
    monkeypatch.setattr(driver, "open_model", lambda *_, **__: checkpoint)
    return made


def portable(manifest: Manifest) -> Manifest:
    """Of which a target graph keeps little."""
    return replace(
        manifest,
        kind="portable",
        target=None,
        engine=None,
        precision="fp32",
        contract=Contract(),
        max_context=8192,
        weight_bytes=7,
        tools=OTHER_TOOLS,
    )


def target(manifest: Manifest) -> Manifest:
    return replace(manifest, kind="target", engine=None)


def make(directory: Path, manifest: Manifest, *, length: str = "past", **files: str) -> Path:
    """An artifact with golden data, and these files."""
    directory.mkdir()
    driver.write_model(graph(length), directory)
    golden().save(directory)
    for name, text in files.items():
        (directory / name).write_text(text)
    write_manifest(directory, manifest)
    return directory
