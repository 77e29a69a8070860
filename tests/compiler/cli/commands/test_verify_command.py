"""verify: checks as a table, and an exit code that scripts can trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import Result

from llmc.compiler.artifact.loss import Loss
from llmc.compiler.artifact.reports import Check, GraphChecks, VerifyReport
from llmc.compiler.cli.tables.verification_table import number

Run = Callable[..., Result]
Replace = Callable[..., Mock]


def test_passed(llmc: Run, replace_driver: Replace, verified: VerifyReport) -> None:
    verify = replace_driver("verify", verified)
    result = llmc("verify", "engine", "--threads", "3")
    assert result.exit_code == 0
    assert verify.call_args.args == (Path("engine"),)
    assert (verify.call_args.kwargs["threads"], verify.call_args.kwargs["max_kl"]) == (3, None)
    rows = [line for line in result.stdout.splitlines() if "│" in line]
    assert [("within" in row, "FAILED" in row) for row in rows] == [(True, False), (False, False)]
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
    graph = GraphChecks("engine.onnx", "ONNX Runtime's", checks, "its graph, elsewhere")
    replace_driver("verify", VerifyReport((graph,), Loss(0.01, 0.5, "engine.onnx")))
    result = llmc("verify", "engine")
    assert result.stderr == (
        "llmc: error: engine does not say what its model says: top-1 agreement is 0.5, tolerated ≥ 0.9; compile it "
        "again, at a higher precision if need be\n"
    )
    assert rows_of(result) == [
        ["mean KL divergence", "0.01", "≤ 0.1", "within"],
        ["top-1 agreement", "0.5", "≥ 0.9", "FAILED"],
        ["reported only", "7", "-", "-"],
    ]
    assert "measured: its graph, elsewhere" in " ".join(result.stdout.split())


def rows_of(result: Result) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]


# --- graphs ---------------------------------------------------------------------------------------------------------


CHECK = Check("mean KL divergence", 0.01, 0.1)


def test_each_graph_and_its_operators_are_named(llmc: Run, replace_driver: Replace) -> None:
    graphs = (
        GraphChecks("engine.onnx", "llmc's own, the others ONNX Runtime's", (CHECK,)),
        GraphChecks("model.onnx", "ONNX Runtime's", (Check("mean KL divergence", 0.2, 0.1),)),
    )
    replace_driver("verify", VerifyReport(graphs, Loss(0.2, 0.5, "model.onnx")))
    result = llmc("verify", "engine")
    text = " ".join(result.stdout.split())
    assert "Verification of engine.onnx; operators: llmc's own, the others ONNX Runtime's" in text
    assert "Verification of model.onnx; operators: ONNX Runtime's" in text
    assert "mean KL divergence is 0.2 in model.onnx, tolerated ≤ 0.1; compile it" in result.stderr
    assert result.exit_code == 8


def test_a_graph_that_does_not_run_here_is_named_with_the_reason(llmc: Run, replace_driver: Replace) -> None:
    graphs = (
        GraphChecks("engine.onnx", "", (), "no C compiler is installed"),
        GraphChecks("model.onnx", "ONNX Runtime's", (CHECK,)),
    )
    replace_driver("verify", VerifyReport(graphs, Loss(0.01, 0.5, "model.onnx")))
    result = llmc("verify", "engine")
    assert "engine.onnx was not verified: no C compiler is installed" in result.stdout
    assert "Verification of engine.onnx" not in result.stdout
    assert result.exit_code == 0


# --- what was lost --------------------------------------------------------------------------------------------------


def test_what_was_lost_is_the_first_line(llmc: Run, replace_driver: Replace) -> None:
    """All checks are within what they were when the engine was made, and it is useless."""
    graphs = (GraphChecks("engine.onnx", "llmc's own", (Check("mean KL divergence", 0.746, 0.93),)),)
    loss = Loss(0.746, 0.56, "engine.onnx")
    replace_driver("verify", VerifyReport(graphs, loss, "--head int8, --asymmetric or --precision int5 loses less"))
    result = llmc("verify", "engine")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:2] == [
        "Heavy loss against the model: mean KL divergence 0.75, the same first choice at 56% of the positions "
        "(engine.onnx)",
        "warning: --head int8, --asymmetric or --precision int5 loses less",
    ]
    assert "passed" not in result.stdout


def test_little_loss_is_said_without_a_warning(llmc: Run, replace_driver: Replace, verified: VerifyReport) -> None:
    replace_driver("verify", verified)
    lines = llmc("verify", "engine").stdout.splitlines()
    assert lines[0].startswith("Hardly noticeable loss against the model: mean KL divergence 0.01, ")
    assert not any("warning" in line for line in lines)


def test_the_users_own_limit(llmc: Run, replace_driver: Replace, verified: VerifyReport) -> None:
    over = replace(
        verified, most=Check("mean KL divergence (--max-kl)", 0.01, 0.005), remedy="--head int8 loses less"
    )
    verify = replace_driver("verify", over)
    result = llmc("verify", "engine", "--max-kl", "0.005")
    assert verify.call_args.kwargs["max_kl"] == 0.005
    assert result.exit_code == 8
    assert rows_of(result)[-1] == ["mean KL divergence (--max-kl)", "0.01", "≤ 0.005", "FAILED"]
    assert result.stderr == (
        "llmc: error: engine does not say what its model says: mean KL divergence (--max-kl) is 0.01, tolerated "
        "≤ 0.005; --head int8 loses less\n"
    )


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
