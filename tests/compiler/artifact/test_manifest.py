"""The manifest: the same bytes for the same record, and nothing read that was not understood."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmc.compiler.artifact.manifest as manifest_module
from llmc.compiler.artifact.manifest import EngineRecord, FileRecord, Manifest, PassRecord, Source, manifest_schema
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.json_record import encode

CONTRACT = encode(Contract())


def changed(manifest: Manifest, **values: Any) -> str:
    """The manifest's text with top-level keys replaced."""
    return json.dumps({**json.loads(manifest.to_json()), **values})


def test_round_trip(manifest: Manifest) -> None:
    text = manifest.to_json()
    again = Manifest.from_json(text)
    assert again == manifest
    assert again.to_json() == text
    assert isinstance(again.passes, tuple)
    assert again.model.sliding_windows == (None, 512, None)


def test_equal_records_give_equal_bytes_whatever_the_order_and_number_type(manifest: Manifest) -> None:
    one = dataclasses.replace(manifest, tools={"b": "2", "a": "1"}, tolerances={"model.onnx": {"kl": 1}})
    other = dataclasses.replace(
        manifest, tools={"a": "1", "b": "2"}, tolerances={"model.onnx": {"kl": np.float32(1.0)}}
    )
    assert one.to_json() == other.to_json()
    assert one.to_json().endswith("}\n")


def test_portable_manifest_has_neither_target_nor_engine(manifest: Manifest) -> None:
    portable = dataclasses.replace(manifest, kind="portable", target=None, engine=None, contract=Contract())
    assert Manifest.from_json(portable.to_json()) == portable


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema_version": 4}, r"out/llmc\.json has schema version 4, and this llmc reads version 3"),
        ({"schema_version": True}, "schema version True"),
        ({"invented": 1}, "unknown key 'invented'"),
        ({"kind": "magic"}, "kind: 'magic' is not one of portable, target, engine"),
        ({"weight_bytes": "many"}, "weight_bytes: expected an integer, found a string"),
        ({"weight_bytes": True}, "weight_bytes: expected an integer, found a boolean"),
        ({"weight_bytes": 1.5}, "weight_bytes: expected an integer, found a number"),
        ({"passes": {}}, "passes: expected a list, found an object"),
        ({"tools": {"llmc": 1}}, r"tools\['llmc'\]: expected a string"),
        ({"files": {"../escape": {"bytes": 1, "sha256": "a" * 64}}}, r"'\.\./escape' must be relative"),
        ({"files": {"a": {"bytes": 1, "sha256": "a" * 64, "mtime": 3}}}, r"files\['a'\]: unknown key 'mtime'"),
        ({"files": {"a": {"bytes": 1}}}, "the key 'sha256' is missing"),
        ({"engine": None}, "engine artifact needs engine record"),
        ({"kind": "target"}, "target artifact has no engine record"),
        ({"target": None}, "engine artifact cannot have target None"),
        ({"measured": {"a": {"kl": 1.0}, "b": {"kl": -1.0}}}, "kl is -1.0"),
        ({"tolerances": {"a": {"top1": -0.5}}}, "top1 is -0.5"),
        ({"measured": {"a": {"kl": True}}}, r"measured\['a'\]\['kl'\]: expected a number, found a boolean"),
        ({"schema_version": 0}, "has schema version 0, and this llmc reads version 3"),
        ({"schema_version": 4, "invented": 1}, "has schema version 4, and this llmc reads version 3"),
        ({"contract": {}}, "contract: the key 'rows' is missing"),
        ({"contract": {**CONTRACT, "cache": "paged"}}, "contract: cache: 'paged' is not one of grow, shared"),
        ({"contract": {**CONTRACT, "logits": "first"}}, "contract: logits: 'first' is not one of last, all"),
        ({"contract": {**CONTRACT, "ragged_chunks": 1}}, "contract: ragged_chunks: expected a boolean"),
        ({"target": "abacus"}, "target: 'abacus' is not one of cpu, cuda"),
        ({"precision": ""}, "the manifest names no precision"),
        ({"kind": "portable", "engine": None}, "a portable artifact cannot have target 'cpu'"),
        ({"kind": "target", "engine": None, "target": None}, "a target artifact cannot have target None"),
        ({"kind": "portable", "target": None}, "a portable artifact has no engine record"),
        ({"max_context": 0}, "max_context is 0, which holds no token"),
        ({"weight_bytes": -1}, "weight_bytes is -1, which cannot be negative"),
    ],
)
def test_reading_refuses(manifest: Manifest, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        Manifest.from_json(changed(manifest, **values), "out/llmc.json")
    assert str(caught.value).startswith("out/llmc.json")


def test_reading_refuses_what_contradicts_itself_in_the_geometry(manifest: Manifest) -> None:
    model = {**json.loads(manifest.to_json())["model"], "sliding_windows": [None, None]}
    with pytest.raises(ArtifactError, match=r"model: llama: 2 layer types for 3 layers"):
        Manifest.from_json(changed(manifest, model=model))


@pytest.mark.parametrize("text", ["", "[", '{"a": NaN}', '{"a": 1, "a": 2}'])
def test_reading_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"llmc\.json is not valid JSON"):
        Manifest.from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}"])
def test_reading_refuses_json_that_is_no_manifest(text: str) -> None:
    with pytest.raises(ArtifactError, match="schema version None"):
        Manifest.from_json(text)


@pytest.mark.parametrize("name", ["/models/x", "~/x", "C:\\x", ""])
def test_a_source_name_is_no_absolute_path(name: str) -> None:
    with pytest.raises(ArtifactError, match="must be a name"):
        Source(name=name, format="gguf", files={}, licence=None)


def test_the_ends_of_what_is_accepted(manifest: Manifest) -> None:
    """Nothing where nothing may be, one where one must be."""
    least = dataclasses.replace(
        manifest,
        max_context=1,
        weight_bytes=0,
        measured={"model.onnx": {"kl": 0.0}},
        files={"empty": FileRecord(bytes=0, sha256="0" * 64)},
        engine=EngineRecord(runtime="x", threads=1, details={}),
        passes=(PassRecord("P", {}, False, {"fired": 0}, {"fired": 0}, 0, 0, 0, 0),),
    )
    assert Manifest.from_json(least.to_json()) == least
    assert Manifest.from_json(dataclasses.replace(least, max_context=None).to_json()).max_context is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "magic", "kind 'magic' is not one of portable, target, engine"),
        ("schema_version", 4, "the manifest has schema version 4"),
        ("tolerances", {"a": {"kl": float("inf")}}, "kl is inf, not a finite error"),
        ("tolerances", {"a": {"kl": float("nan")}}, "kl is nan, not a finite error"),
        ("measured", {"a": {"top1": 1.0, "kl": float("inf")}}, "kl is inf, not a finite error"),
    ],
)
def test_what_is_not_read_cannot_be_written(manifest: Manifest, field: str, value: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        dataclasses.replace(manifest, **{field: value})


@pytest.mark.parametrize("name", ["/a", "..", "../a", "a/../b", "a//b", "./a", "a\\b", "", "."])
def test_a_file_name_stays_inside_the_directory(manifest: Manifest, name: str) -> None:
    with pytest.raises(ArtifactError, match="must be relative"):
        dataclasses.replace(manifest, files={name: FileRecord(bytes=1, sha256="a" * 64)})
    files = {"config.json": FileRecord(bytes=1, sha256="a" * 64), name: FileRecord(bytes=1, sha256="a" * 64)}
    with pytest.raises(ArtifactError, match="must be relative"):
        Source(name="x", format="gguf", files=files, licence=None)


def test_not_a_number_is_never_written(manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="not a finite error"):
        dataclasses.replace(manifest, measured={"a": {"kl": float("nan")}})
    record = dataclasses.replace(manifest.passes[0], fields={"scale": float("inf")})
    with pytest.raises(ArtifactError, match="cannot be written as JSON"):
        dataclasses.replace(manifest, passes=(record,)).to_json()


@pytest.mark.parametrize("digits", ["A" * 64, "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n", ""])
def test_a_hash_is_64_hexadecimal_digits(digits: str) -> None:
    with pytest.raises(ArtifactError, match="is not a SHA-256 in 64 hexadecimal digits"):
        FileRecord(bytes=1, sha256=digits)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("counts", {"heads": 1, "fired": -1}, "fired is -1"),
        ("expected", {"fired": -1}, "expected fired is -1"),
        ("nodes_before", -1, "nodes_before is -1"),
        ("nodes_after", -1, "nodes_after is -1"),
        ("bytes_before", -1, "bytes_before is -1"),
        ("bytes_after", -1, "bytes_after is -1"),
    ],
)
def test_no_count_of_a_pass_is_negative(manifest: Manifest, field: str, value: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=f"^pass PackQKV: {said}, which cannot be negative"):
        dataclasses.replace(manifest.passes[0], **{field: value})


def test_records_refuse_impossible_values(manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="-1 bytes"):
        FileRecord(bytes=-1, sha256="a" * 64)
    with pytest.raises(ArtifactError, match="0 threads"):
        EngineRecord(runtime="x", threads=0, details={})
    with pytest.raises(ArtifactError, match="names no runtime"):
        EngineRecord(runtime="", threads=None, details={})
    with pytest.raises(ArtifactError, match="a pass record has no name"):
        dataclasses.replace(manifest.passes[0], name="")
    zipped: Any = "zip"
    with pytest.raises(ArtifactError, match="source format 'zip' is not one of safetensors, gguf"):
        dataclasses.replace(manifest.source, format=zipped)


def test_the_shipped_schema_is_the_dataclasses(manifest: Manifest) -> None:
    shipped = Path(manifest_module.__file__).with_name("manifest.schema.json").read_text(encoding="utf-8")
    assert shipped == manifest_schema(), "compiler/artifact/manifest.schema.json is out of date: run `make schema`"
    described = json.loads(shipped)
    written = json.loads(manifest.to_json())
    assert described["required"] == sorted(written)
    assert described["additionalProperties"] is False
    assert described["$defs"]["PassRecord"]["required"] == sorted(written["passes"][0])
    assert described["properties"]["schema_version"] == {"enum": [3]}
