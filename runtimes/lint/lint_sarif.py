"""A lint report as SARIF, which code hosts and editors show beside the file.

In: a report. Out: plain values after SARIF 2.1.0 (OASIS standard, 2020-03-27). Silently wrong and refused are errors,
slow is a warning. A node has no line in a binary file: it stands as a logical location in the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llmc.compiler.base.versions import llmc_version
from llmc.runtimes.lint.lint import RULES, Finding, LintReport
from llmc.runtimes.lint.tables.trap_rules import TRAP_RULES

SARIF_VERSION = "2.1.0"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"wrong": "error", "refused": "error", "slow": "warning"}
SAYS = {"wrong": "silently wrong", "refused": "refused", "slow": "runs slowly"}


def to_sarif(report: LintReport) -> dict[str, Any]:
    """The whole report: one run, one result per finding, only the rules that were found."""
    rules = list(dict.fromkeys(finding.rule for finding in report.findings))
    return {
        "$schema": SARIF_SCHEMA,
        "version": SARIF_VERSION,
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "llmc lint",
                        "version": llmc_version(),
                        "rules": [_rule(name, report.findings) for name in rules],
                    }
                },
                "automationDetails": {"id": f"llmc-lint/{report.table.target}"},
                "results": [_result(finding, report, rules) for finding in report.findings],
                "properties": {"target": report.table.target, "evidence": report.table.evidence},
            }
        ],
    }


def _rule(name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    first = next(finding for finding in findings if finding.rule == name)
    trap = TRAP_RULES.get(name)
    text = f"{trap.label} {trap.says}." if trap is not None else RULES[name]
    return {
        "id": name,
        "shortDescription": {"text": text},
        "help": {"text": f"What to do: {first.advice}."},
        "defaultConfiguration": {"level": LEVELS[first.outcome]},
    }


def _result(finding: Finding, report: LintReport, rules: Sequence[str]) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(report.path)},
            "region": {"byteOffset": 0, "byteLength": report.path.stat().st_size},
        }
    }
    if finding.node:
        full = f"{finding.inside}/{finding.node}" if finding.inside else finding.node
        location["logicalLocations"] = [{"name": finding.node, "fullyQualifiedName": full, "kind": "element"}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": LEVELS[finding.outcome],
        "message": {
            "text": f"{SAYS[finding.outcome].capitalize()}: {finding.message}. What to do: {finding.advice}."
        },
        "locations": [location],
        "properties": {"outcome": finding.outcome, "operator": finding.operator, "source": finding.source},
    }


def _uri(path: Path) -> str:
    """A relative path stays one, so that a report fits any checkout."""
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
