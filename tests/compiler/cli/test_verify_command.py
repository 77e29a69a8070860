"""verify: checks as a table, and an exit code that scripts can trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from typer.testing import Result

from llmc.compiler.reports import VerifyReport

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
