"""SARIF 2.1.0: what the standard requires of what is written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.lint.lint import RULES, Finding, LintReport, lint_file
from llmc.runtimes.lint.lint_sarif import to_sarif
from llmc.runtimes.lint.tables.table import load_table

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


def finding(outcome: Any, rule: str, node: str, inside: str = "") -> Finding:
    return Finding(outcome, rule, node, "Op", inside, f"it is {outcome}", f"do without {node}", f"of {node}")


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """Of findings of all outcomes, two of one rule."""
    (tmp_path / "model.onnx").write_bytes(bytes(10))
    findings = (
        finding("wrong", "attention-softcap", "a"),
        finding("refused", "operator", "b", "body of call"),
        finding("slow", "type-conversion", "c"),
        finding("refused", "operator", "d"),
    )
    value = to_sarif(LintReport(tmp_path / "model.onnx", load_table("ort-1.24"), findings, ()))
    content: dict[str, Any] = value["runs"][0]
    return content


def test_every_finding_is_a_result_of_its_level(run: dict[str, Any]) -> None:
    """Code hosts let an error block a change."""
    assert [(result["properties"]["outcome"], result["level"]) for result in run["results"]] == [
        ("wrong", "error"),
        ("refused", "error"),
        ("slow", "warning"),
        ("refused", "error"),
    ]
    assert [result["message"]["text"] for result in run["results"]] == [
        "Silently wrong: it is wrong. What to do: do without a.",
        "Refused: it is refused. What to do: do without b.",
        "Runs slowly: it is slow. What to do: do without c.",
        "Refused: it is refused. What to do: do without d.",
    ]
    assert [result["properties"]["source"] for result in run["results"]] == ["of a", "of b", "of c", "of d"]


def test_every_rule_is_described_once(run: dict[str, Any]) -> None:
    rules = run["tool"]["driver"]["rules"]
    assert [(rule["id"], rule["defaultConfiguration"]["level"]) for rule in rules] == [
        ("attention-softcap", "error"),
        ("operator", "error"),
        ("type-conversion", "warning"),
    ]
    assert [rule["shortDescription"]["text"] for rule in rules] == [
        "Attention caps the scores (softcap).",
        RULES["operator"],
        RULES["type-conversion"],
    ]
    assert [rule["help"]["text"] for rule in rules] == [f"What to do: do without {node}." for node in "abc"]
    assert [result["ruleIndex"] for result in run["results"]] == [0, 1, 2, 1]


def test_a_node_in_a_body_has_its_place_in_its_name(run: dict[str, Any]) -> None:
    places = [result["locations"][0]["logicalLocations"][0] for result in run["results"]]
    assert [(place["name"], place["fullyQualifiedName"]) for place in places] == [
        ("a", "a"),
        ("b", "body of call/b"),
        ("c", "c"),
        ("d", "d"),
    ]


def test_reports_on_targets_do_not_replace_each_other(run: dict[str, Any]) -> None:
    """A code host keeps one report for each identity."""
    assert run["automationDetails"]["id"] == "llmc-lint/ort-1.24"
    assert run["properties"]["target"] == "ort-1.24"
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"] == {"byteOffset": 0, "byteLength": 10}
