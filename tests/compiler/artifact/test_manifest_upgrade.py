"""Manifests of version 1, whose contract is read off the passes that had run; of 2, which knew of one graph."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llmc.compiler.artifact.manifest import EngineRecord, FileRecord, Manifest
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import ArtifactError


def version_2(manifest: Manifest, **values: Any) -> str:
    """The text that the version before this one would have written."""
    written = json.loads(manifest.to_json())
    for kind in ("tolerances", "measured"):
        (written[kind],) = list(written[kind].values()) or [{}]
    return json.dumps({**written, "schema_version": 2, **values})


def version_1(manifest: Manifest, *passes: dict[str, Any], **values: Any) -> str:
    """That of the version before it."""
    written = json.loads(version_2(manifest))
    contract = written.pop("contract")
    assert not written.pop("plan"), "version 1 had none"
    engine = written["engine"]
    if engine is not None:
        engine["details"]["graph"] = engine.pop("graph")
        engine["profiles"] = []
    kinds = {"cache": contract["cache"], "logits": contract["logits"]}
    return json.dumps({**written, **kinds, "passes": passes, "schema_version": 1, **values})


def ran(name: str, fields: dict[str, Any] | None = None, **counts: int) -> dict[str, Any]:
    sizes = {"nodes_before": 1, "nodes_after": 1, "bytes_before": 1, "bytes_after": 1}
    empty: dict[str, int] = {}
    return {"name": name, "fields": fields or {}, "modified": True, "counts": counts, "expected": empty, **sizes}


@pytest.mark.parametrize(
    ("passes", "contract"),
    [
        ([], Contract()),
        ([ran("PackQKV", packed=3)], Contract()),
        ([ran("LowerAttention", attention=1)], Contract(rows="slot0")),
        ([ran("LowerAttention")], Contract()),
        ([ran("UseStandardAttention", {"cache": "scatter"}, attention=2)], Contract(rows="slot0")),
        ([ran("UseStandardAttention", {"cache": "concat"}, attention=2)], Contract()),
        ([ran("UseStandardAttention", {"cache": "scatter"})], Contract()),
        ([ran("LowerAttention", {"query_seqlens": True}, attention=1)], Contract(rows="slot0")),
        (
            [ran("LowerAttention", {"query_seqlens": False}, attention=1)],
            Contract(rows="slot0", ragged_chunks=False),
        ),
        ([ran("LowerAttention", {"query_seqlens": False})], Contract(ragged_chunks=False)),
        ([ran("UseStandardAttention", {"query_seqlens": False}, attention=1)], Contract()),
        ([ran("ConvertFloat", weights=3), ran("PackQKV")], Contract(rounded_to="fp16")),
        ([ran("ConvertFloat")], Contract()),
        ([ran("LowerAttention", attention=1), ran("TakeLengths", lengths=2)], Contract("slot0", lengths="inputs")),
    ],
)
@pytest.mark.parametrize("kinds", [{"cache": "grow", "logits": "all"}, {"cache": "shared", "logits": "last"}])
def test_a_contract_is_read_off_the_passes(
    manifest: Manifest, passes: list[dict[str, Any]], contract: Contract, kinds: dict[str, Any]
) -> None:
    upgraded = Manifest.from_json(version_1(manifest, *passes, **kinds))
    assert upgraded.contract == replace(contract, **kinds)
    assert [record.name for record in upgraded.passes] == [record["name"] for record in passes]
    assert (upgraded.schema_version, Manifest.from_json(upgraded.to_json())) == (3, upgraded)


@pytest.mark.parametrize(("files", "graph"), [((), "model.onnx"), (("engine.onnx",), "engine.onnx")])
def test_an_engine_names_its_graph(manifest: Manifest, files: tuple[str, ...], graph: str) -> None:
    record = FileRecord(bytes=1, sha256="a" * 64)
    engine = EngineRecord("openvino-cpu", 2, {"openvino": "2026.1"}, "openvino_model.xml")
    made = replace(manifest, engine=engine, files=dict.fromkeys(files, record), tolerances={}, measured={})
    assert Manifest.from_json(version_1(made)).engine == replace(engine, graph=graph)


def test_a_portable_graph_has_no_engine(manifest: Manifest) -> None:
    portable = replace(manifest, kind="portable", target=None, engine=None, contract=Contract(), passes=())
    portable = replace(portable, tolerances={"model.onnx": {"kl": 0.5}}, measured={"model.onnx": {"kl": 0.25}})
    assert Manifest.from_json(version_1(portable)) == portable
    assert Manifest.from_json(version_2(portable)) == portable


@pytest.mark.parametrize(
    "values", [{"passes": 3}, {"passes": [{"name": "LowerAttention"}]}, {"passes": [3]}, {"engine": {}}]
)
def test_what_only_says_that_it_is_version_1(manifest: Manifest, values: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"^out/llmc\.json is no manifest of version 1 .*make the artifact again"):
        Manifest.from_json(version_1(manifest, **values), "out/llmc.json")


def test_other_damage_is_said_as_of_any_manifest(manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="invented"):
        Manifest.from_json(version_1(manifest, invented=1))


@pytest.mark.parametrize(
    ("runtime", "graph", "graphs"),
    [
        ("onnxruntime-cpu", "engine.onnx", ["engine.onnx"]),
        ("onnxruntime-cpu", "model.onnx", ["model.onnx"]),
        ("onnxruntime-cuda", "engine.onnx", ["engine.onnx"]),
        ("openvino-cpu", "model.onnx", ["openvino_model.xml"]),
        ("tensorrt", "engine.onnx", ["engine.onnx", "model.onnx"]),
        ("tensorrt-rtx", "engine.onnx", ["engine.onnx", "model.onnx"]),
    ],
)
def test_what_was_measured_is_of_the_graph_that_had_run(
    manifest: Manifest, runtime: str, graph: str, graphs: list[str]
) -> None:
    """Which of two stood in for an engine that no machine ran was not kept: it holds for either."""
    engine = EngineRecord(runtime, 2, {}, graph)
    made = Manifest.from_json(version_2(replace(manifest, engine=engine)))
    (tolerances,), (measured,) = manifest.tolerances.values(), manifest.measured.values()
    assert made.tolerances == dict.fromkeys(graphs, tolerances)
    assert made.measured == dict.fromkeys(graphs, measured)
    assert made.engine == engine


def test_what_was_not_measured_is_not_measured(manifest: Manifest) -> None:
    made = replace(manifest, tolerances={}, measured={})
    assert Manifest.from_json(version_2(made)) == made


@pytest.mark.parametrize("values", [{"engine": {}}, {"tolerances": 3, "engine": 4}])
def test_what_only_says_that_it_is_version_2(manifest: Manifest, values: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"^out/llmc\.json is no manifest of version 2 .*make the artifact again"):
        Manifest.from_json(version_2(manifest, **values), "out/llmc.json")


def test_manifests_that_do_not_say_how_hard_numbers_were_looked_for(manifest: Manifest) -> None:
    """The first of version 3, and all before."""
    written = json.loads(replace(manifest, effort="fast").to_json())
    assert Manifest.from_json(json.dumps(written)).effort == "fast"
    del written["effort"], written["stored"], written["source"]["ignored"]
    read = Manifest.from_json(json.dumps(written))
    assert (read.effort, read.stored, read.source.ignored) == (None, {}, ())


def test_manifests_that_do_not_say_which_commit_a_model_was(manifest: Manifest) -> None:
    known = replace(manifest, source=replace(manifest.source, revision="v1", commit="c0" * 20))
    written = json.loads(known.to_json())
    assert Manifest.from_json(json.dumps(written)) == known
    del written["source"]["revision"], written["source"]["commit"]
    assert Manifest.from_json(json.dumps(written)) == manifest
