"""verify: checks as a table, and an exit code that scripts can trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import Result

from llmc.compiler.artifact.reports import Check, VerifyReport
from llmc.compiler.cli.tables.verification_table import number

Run = Callable[..., Result]
Replace = Callable[..., Mock]


def test_passed(llmc: Run, replace_driver: Replace, verified: VerifyReport) -> None:
    verify = replace_driver("verify", verified)
    result = llmc("verify", "engine", "--threads", "3")
    assert result.exit_code == 0
    assert verify.call_args.args == (Path("engine"),)
    assert verify.call_args.kwargs["threads"] == 3
    rows = [line for line in result.stdout.splitlines() if "│" in line]
    assert [("passed" in row, "FAILED" in row) for row in rows] == [(True, False), (False, False)]
    assert "0.00025" in rows[0]
    assert "≤ 0.001" in rows[0]


def test_failed(llmc: Run, replace_driver: Replace, not_verified: VerifyReport) -> None:
    replace_driver("verify", not_verified)
    result = llmc("verify", "engine")
    assert result.exit_code == 8
    assert result.stdout.count("FAILED") == 2
    assert "engine does not say what its model says" in result.stderr
    assert "largest logit error is 0.25, tolerated ≤ 0.001" in result.stderr
    assert "top-1 agreement is 0.5, tolerated ≥ 0.9" in result.stderr


def test_failed_as_json_is_one_document(llmc: Run, replace_driver: Replace, not_verified: VerifyReport) -> None:
    replace_driver("verify", not_verified)
    result = llmc("verify", "engine", "--json")
    assert result.exit_code == 8
    assert json.loads(result.stdout) == not_verified.to_json()


def test_the_sentence_names_what_failed_alone(llmc: Run, replace_driver: Replace, not_verified: VerifyReport) -> None:
    checks = (Check("mean KL divergence", 0.01, 0.1), not_verified.checks[1], Check("reported only", 7.0, None))
    replace_driver("verify", VerifyReport(checks, "its graph, elsewhere"))
    result = llmc("verify", "engine")
    assert result.stderr == (
        "llmc: error: engine does not say what its model says: top-1 agreement is 0.5, tolerated ≥ 0.9; compile it "
        "again, at a higher precision if need be\n"
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert rows == [
        ["mean KL divergence", "0.01", "≤ 0.1", "passed"],
        ["top-1 agreement", "0.5", "≥ 0.9", "FAILED"],
        ["reported only", "7", "-", "-"],
    ]
    assert "measured: its graph, elsewhere" in result.stdout


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (-3.0, "-3"),
        (0.98765, "0.9877"),
        (1.25e-7, "1.25e-07"),
        (123.456, "123.5"),
        (1e30, "1e+30"),
        (999_999_999.0, "999999999"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text
