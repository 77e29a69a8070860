"""SARIF 2.1.0: what the standard requires of what is written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmc.compiler.lint import lint_file
from llmc.compiler.lint_sarif import to_sarif

from .lint_models import LENGTHS, MASKED, save


def test_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(LENGTHS, tmp_path / "my model.onnx")
    value = to_sarif(lint_file(Path("my model.onnx"), "tensorrt-11"))
    assert json.loads(json.dumps(value)) == value
    assert value["version"] == "2.1.0"
    (run,) = value["runs"]
    (rule,) = run["tool"]["driver"]["rules"]
    (result,) = run["results"]
    assert rule["id"] == result["ruleId"] == "attention-lengths"
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]] is rule
    assert result["level"] == rule["defaultConfiguration"]["level"] == "error"
    assert result["message"]["text"].startswith("Silently wrong: Attention takes lengths from nonpad_kv_seqlen")
    (location,) = result["locations"]
    size = (tmp_path / "my model.onnx").stat().st_size
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "my%20model.onnx"},
        "region": {"byteOffset": 0, "byteLength": size},
    }
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "attention"
    assert result["properties"]["source"]


def test_slow_is_a_warning_and_runs_is_nothing(tmp_path: Path) -> None:
    path = save(MASKED, tmp_path / "model.onnx")
    assert to_sarif(lint_file(path, "tensorrt-rtx-1.7"))["runs"][0]["results"] == []
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float16[2, 2] x) => (float16[2, 2] y) { [product] y = MatMul(x, x) }"""
    (result,) = to_sarif(lint_file(save(text, path), "ort-1.24"))["runs"][0]["results"]
    assert result["level"] == "warning"


def test_a_finding_about_the_whole_file_has_no_node(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 26]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    path = save(text, tmp_path / "model.onnx")
    (result,) = to_sarif(lint_file(path, "ort-1.24"))["runs"][0]["results"]
    assert "logicalLocations" not in result["locations"][0]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == path.as_uri()
