"""What a report makes of findings: groups, counts, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.lint.lint import NAMES_SHOWN, Finding, LintReport, NodeVerdict
from llmc.runtimes.lint.tables.table import load_table

TARGET = "ort-1.24"


def finding(outcome: Any, node: str, *, rule: str = "use", message: str = "m", inside: str = "") -> Finding:
    return Finding(outcome, rule, node, f"Op{node[:1]}", inside, message, "advice", "source")


def report_of(*findings: Finding) -> LintReport:
    nodes = tuple(NodeVerdict(item.node, item.operator, item.inside, item.outcome) for item in findings)
    return LintReport(Path("model.onnx"), load_table(TARGET), findings, nodes)


def test_findings_of_one_rule_and_message_are_a_group() -> None:
    findings = [finding("refused", f"a{i}", inside="body of f" if i else "") for i in range(NAMES_SHOWN + 1)]
    (group,) = report_of(*findings, finding("refused", "b")).groups()
    assert (group.count, group.operators) == (NAMES_SHOWN + 2, ("Opa", "Opb"))
    assert group.nodes == ("a0", "body of f: a1", "body of f: a2")
    assert (group.outcome, group.rule, group.message, group.advice, group.source) == (
        "refused",
        "use",
        "m",
        "advice",
        "source",
    )


@pytest.mark.parametrize(
    "other", [finding("wrong", "b"), finding("refused", "b", rule="operator"), finding("refused", "b", message="n")]
)
def test_findings_that_differ_are_groups_of_their_own(other: Finding) -> None:
    groups = report_of(finding("refused", "a"), other).groups()
    assert [(group.count, group.nodes) for group in groups] == [(1, ("a",)), (1, ("b",))]


def test_what_there_is_among_several() -> None:
    report = report_of(finding("wrong", "a"), finding("slow", "b"))
    assert (report.has("wrong"), report.has("refused"), report.has("slow")) == (True, False, True)


def test_the_json() -> None:
    report = report_of(finding("wrong", "a"), finding("slow", "b", inside="body of f"))
    value = report.to_json()
    assert json.loads(json.dumps(value)) == value
    assert [(item["outcome"], item["node"], item["inside"]) for item in value["findings"]] == [
        ("wrong", "a", ""),
        ("slow", "b", "body of f"),
    ]
    assert value["counts"] == {"wrong": 1, "refused": 0, "slow": 1, "runs": 0, "unknown": 0}
    assert [node["verdict"] for node in value["nodes"]] == ["wrong", "slow"]
    assert (value["schema_version"], value["path"], value["target"]) == (1, "model.onnx", TARGET)
