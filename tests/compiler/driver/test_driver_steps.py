"""optimize and build: what they refuse, what goes along, what is recorded, who is asked for what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.artifact.golden import GOLDEN
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import PassOutcome, VerifyReport
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import ArtifactError, FusionContractError, UsageError
from llmc.compiler.base.options import EngineOptions, OptimizeOptions
from llmc.compiler.base.progress import NoProgress
from llmc.compiler.base.versions import tool_versions
from llmc.compiler.driver import driver

from .driver_fakes import OTHER_TOOLS, WEIGHT_BYTES, Remembered, golden, install, make, outcome, portable, target


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch, manifest: Manifest) -> Remembered:
    return install(monkeypatch, manifest)


@pytest.fixture
def source(tmp_path: Path, manifest: Manifest) -> Path:
    return make(tmp_path / "portable", portable(manifest))


@pytest.fixture
def lowered(tmp_path: Path, manifest: Manifest) -> Path:
    return make(tmp_path / "target", target(manifest), length="capacity")


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["target", "engine"])
def test_optimize_takes_what_export_made(tmp_path: Path, manifest: Manifest, helpers: Remembered, kind: str) -> None:
    path = make(tmp_path / "other", target(manifest) if kind == "target" else manifest)
    with pytest.raises(UsageError, match=f"other holds the {kind} graph; optimize takes what export made"):
        driver.optimize(path, tmp_path / "out", OptimizeOptions())
    assert helpers.calls == []


@pytest.mark.parametrize("kind", ["portable", "engine"])
def test_build_takes_what_optimize_made(tmp_path: Path, manifest: Manifest, helpers: Remembered, kind: str) -> None:
    path = make(tmp_path / "other", portable(manifest) if kind == "portable" else manifest)
    with pytest.raises(UsageError, match=f"other holds the {kind} graph; build takes what optimize made"):
        driver.build(path, tmp_path / "out")
    assert helpers.calls == []


@pytest.mark.parametrize("command", ["optimize", "build"])
def test_a_graph_without_weights_goes_no_further(
    source: Path, lowered: Path, tmp_path: Path, helpers: Remembered, command: str
) -> None:
    path = source if command == "optimize" else lowered
    (path / "model.onnx.data").unlink()
    write_manifest(path, replace(driver.Manifest.from_json((path / "llmc.json").read_text()), files={}))
    with pytest.raises(ArtifactError, match=r"was made without weights \(model\.onnx\.data\)"):
        _ = (
            driver.optimize(path, tmp_path / "out", OptimizeOptions())
            if command == "optimize"
            else driver.build(path, tmp_path / "out")
        )
    assert helpers.calls == []


def test_a_context_that_holds_no_golden_prompt_is_refused_before_any_work(
    source: Path, tmp_path: Path, helpers: Remembered
) -> None:
    one = golden()
    replace(one, lengths=one.lengths + 20).save(source)
    record = driver.Manifest.from_json((source / "llmc.json").read_text())
    write_manifest(source, replace(record, files={}))
    with pytest.raises(UsageError, match=r"--context 21 holds none of the prompts that .* give at least 22"):
        driver.optimize(source, tmp_path / "out", OptimizeOptions(context=21))
    assert helpers.calls == []
    assert driver.optimize(source, tmp_path / "out", OptimizeOptions(context=22)).manifest.max_context == 22


def test_a_cache_beyond_the_graphs_context_is_refused_before_any_work(
    lowered: Path, tmp_path: Path, helpers: Remembered
) -> None:
    context = open_artifact(lowered).manifest.max_context
    assert context is not None
    with pytest.raises(UsageError, match=f"--capacity {context + 1} is more than the {context} tokens"):
        driver.build(lowered, tmp_path / "out", EngineOptions(capacities=(context + 1,)))
    assert helpers.calls == []


# --- optimize -------------------------------------------------------------------------------------------------------


def test_what_optimize_records(source: Path, tmp_path: Path, helpers: Remembered, manifest: Manifest) -> None:
    """Of the portable graph's record, what the graph is made from and what its passes did."""
    options = OptimizeOptions(precision="int8", cache="grow", logits="last", context=99, max_kl=0.5)
    report = driver.optimize(source, tmp_path / "out", options)
    made = report.manifest
    assert made == open_artifact(tmp_path / "out").manifest
    assert (made.kind, made.target, made.precision) == ("target", "cpu", "int8")
    assert (made.contract, made.max_context, made.weight_bytes) == (Contract(logits="last"), 99, WEIGHT_BYTES)
    assert (made.tolerances, made.measured) == ({}, {})
    assert [record.name for record in made.passes] == ["PackQKV", "Fuse"]
    assert made.tools == tool_versions() != OTHER_TOOLS
    assert (made.source, made.model) == (manifest.source, manifest.model)
    assert (report.outcomes, report.genai_refusal) == (tuple(helpers.outcomes), "it has states")
    assert helpers.calls == ["target_passes", "target passes", "measure"]
    assert (helpers.given["measure"]["max_kl"], report.verification) == (0.5, VerifyReport(()))


@pytest.mark.parametrize(
    ("counts", "warning"),
    [
        ([{}, {"int4": 3, "float": 1}], ""),
        ([{"float": 2, "int8": 1}, {}], "--precision int4: no weight is stored so (2 float, 1 int8)"),
        ([{}, {}], ""),
    ],
)
def test_what_was_made_is_recorded_beside_what_was_asked(
    source: Path, tmp_path: Path, helpers: Remembered, caplog: pytest.LogCaptureFixture, counts: Any, warning: str
) -> None:
    helpers.outcomes = [replace(outcome(name), stored=stored) for name, stored in zip("AB", counts, strict=True)]
    report = driver.optimize(source, tmp_path / "out", OptimizeOptions(precision="int4"))
    assert report.manifest.stored == counts[0] | counts[1]
    assert report.manifest.precision == "int4"
    assert caplog.text.count("no weight is stored so") == (1 if warning else 0)
    assert warning in caplog.text


def test_the_passes_state_how_the_graph_is_called(source: Path, tmp_path: Path, helpers: Remembered) -> None:
    helpers.outcomes = [outcome("A", rows="slot0"), outcome("B"), outcome("C", cache="shared", rounded_to="bf16")]
    made = driver.optimize(source, tmp_path / "out", OptimizeOptions()).manifest
    assert made.contract == Contract(rows="slot0", cache="shared", rounded_to="bf16")


def test_the_passes_have_the_ranges_and_say_what_they_do(source: Path, tmp_path: Path, helpers: Remembered) -> None:
    progress = NoProgress()
    driver.optimize(source, tmp_path / "out", OptimizeOptions(dump=tmp_path / "dump"), progress=progress)
    assert helpers.given["target_passes"]["golden"].vocab_size == 64
    assert helpers.given["target passes"] == {"dump": tmp_path / "dump", "observer": None, "progress": progress}
    assert ir.load(tmp_path / "out" / "model.onnx").graph.name == "target passes"


ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@pytest.mark.parametrize("command", ["optimize", "build"])
def test_what_goes_along(tmp_path: Path, manifest: Manifest, helpers: Remembered, command: str) -> None:
    """The checkpoint's small files and the golden data; not what somebody else put there."""
    made = portable(manifest) if command == "optimize" else target(manifest)
    path = make(tmp_path / "in", made, **{name: name for name in ASSETS}, **{"notes.txt": "mine"})
    if command == "optimize":
        driver.optimize(path, tmp_path / "out", OptimizeOptions())
    else:
        driver.build(path, tmp_path / "out")
    for name in ASSETS:
        assert (tmp_path / "out" / name).read_text() == name
    assert (tmp_path / "out" / GOLDEN).read_bytes() == (path / GOLDEN).read_bytes()
    assert (tmp_path / "out" / "model.onnx.data").read_bytes() == (path / "model.onnx.data").read_bytes()
    assert not (tmp_path / "out" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ([outcome("A"), outcome("B")], None),
        ([outcome("A", 0), outcome("B")], "A: fired fired 0 of 9 times; no place looked like it"),
        (
            [outcome("A", 0, "r", "s"), outcome("B", 0)],
            "A: fired fired 0 of 9 times; node0: r; A: fired fired 0 of 9 times; node1: s; "
            "B: fired fired 0 of 9 times; no place looked like it",
        ),
        (
            [outcome("A", 0, "r", "s", "t", "u", "v")],
            "A: fired fired 0 of 9 times; node0: r; A: fired fired 0 of 9 times; node1: s; "
            "A: fired fired 0 of 9 times; node2: t (and 2 more)",
        ),
    ],
    ids=["none", "of the first pass", "three", "five"],
)
def test_strict_fails_on_shortfalls_and_nothing_else_does(
    source: Path, tmp_path: Path, helpers: Remembered, outcomes: list[PassOutcome], sentence: str | None
) -> None:
    helpers.outcomes = outcomes
    assert driver.optimize(source, tmp_path / "lax", OptimizeOptions()).outcomes == tuple(outcomes)
    if sentence is None:
        driver.optimize(source, tmp_path / "strict", OptimizeOptions(strict=True))
    else:
        with pytest.raises(FusionContractError) as raised:
            driver.optimize(source, tmp_path / "strict", OptimizeOptions(strict=True))
        assert str(raised.value) == sentence
        assert not (tmp_path / "strict").exists()


# --- build ----------------------------------------------------------------------------------------------------------


def test_what_build_records(lowered: Path, tmp_path: Path, helpers: Remembered, manifest: Manifest) -> None:
    options = EngineOptions(strict=True)
    made = driver.build(lowered, tmp_path / "out", options, threads=5)
    assert made == open_artifact(tmp_path / "out").manifest
    assert made.engine is not None
    assert (made.kind, made.engine.runtime, made.engine.threads) == ("engine", "runtime", 5)
    assert made.engine.details == {"capacity": 128}
    assert (made.tolerances, made.measured) == ({}, {}), "those of the target graph are not the engine's"
    assert made.passes == manifest.passes
    assert helpers.calls == ["get_engine", "build", "measure"]
    assert helpers.given["build"]["threads"] == 5
    assert helpers.given["build"]["options"] is options
    assert "engine.plan" in made.files
    assert not (tmp_path / "out" / "engine.onnx").exists()


def test_an_engines_own_graph_is_there_when_it_is_built(
    lowered: Path, tmp_path: Path, helpers: Remembered, manifest: Manifest
) -> None:
    helpers.engine_outcomes = [outcome("TakeLengths", lengths="inputs")]
    made = driver.build(lowered, tmp_path / "out")
    assert [record.name for record in made.passes] == ["PackQKV", "TakeLengths"]
    assert made.contract == replace(manifest.contract, lengths="inputs")
    assert {"model.onnx", "model.onnx.data", "engine.onnx"} <= helpers.given["build"]["files"]
    assert ir.load(tmp_path / "out" / "engine.onnx").graph.name == "engine passes"
    assert ir.load(tmp_path / "out" / "model.onnx").graph.name == "tiny"
    assert helpers.given["build"]["options"] == EngineOptions()
