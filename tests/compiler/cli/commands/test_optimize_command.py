"""optimize: options, plan, passes, shortfalls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.text import Text
from typer.testing import Result

from llmc.compiler.artifact.ledger_report import LedgerEntry, LedgerError, LedgerFinding, LedgerReport
from llmc.compiler.artifact.reports import OptimizeReport, PassOutcome, PlannedPass
from llmc.compiler.base.errors import FusionContractError
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.cli.tables.pass_tables import SHORTFALL, outcome_table, record_table

Run = Callable[..., Result]
Replace = Callable[..., Mock]


def test_passes_are_shown(llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport) -> None:
    optimize = replace_driver("optimize", optimize_report)
    result = llmc("optimize", "graph", "-o", "out", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert optimize.call_args.args == (Path("graph"), Path("out"), OptimizeOptions())
    assert optimize.call_args.kwargs["overwrite"] is True
    for words in ("PackQKV", "packed 3/3", "3456 → 2345", "13"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "symmetric"), [((), None), (("--symmetric",), True), (("--asymmetric",), False)]
)
def test_symmetric_has_three_answers(
    llmc: Run,
    replace_driver: Replace,
    optimize_report: OptimizeReport,
    arguments: tuple[str, ...],
    symmetric: bool | None,
) -> None:
    optimize = replace_driver("optimize", optimize_report)
    llmc("optimize", "graph", "-o", "out", *arguments)
    assert optimize.call_args.args[2].symmetric is symmetric


@pytest.mark.parametrize("zero", ["auto", "none", "integer", "offset"])
def test_zero_points_have_names(
    llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport, zero: str
) -> None:
    optimize = replace_driver("optimize", optimize_report)
    assert llmc("optimize", "graph", "-o", "out", "--zero-points", zero).exit_code == 0
    assert optimize.call_args.args[2].zero_points == zero
    refused = llmc("optimize", "graph", "-o", "out", "--zero-points", zero, "--symmetric")
    assert (refused.exit_code == 2) == (zero in {"integer", "offset"})


def test_json(llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport) -> None:
    replace_driver("optimize", optimize_report)
    result = llmc("optimize", "graph", "-o", "out", "--json")
    assert json.loads(result.stdout) == json.loads(json.dumps(optimize_report.to_json()))
    assert json.loads(result.stdout)["passes"][0]["expected"] == {"packed": 3}


def test_a_shortfall_names_node_and_reason(
    llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport, short_outcome: PassOutcome
) -> None:
    replace_driver("optimize", dataclasses.replace(optimize_report, outcomes=(short_outcome,)))
    result = llmc("optimize", "graph", "-o", "out")
    assert result.exit_code == 0
    assert "packed 2/3" in result.stdout
    assert "layers.1/q_proj: its bias is [not] constant" in result.stdout


@pytest.mark.parametrize(("fired", "expected", "red"), [(3, 3, False), (4, 3, False), (2, 3, True), (0, 1, True)])
def test_a_fusion_that_fell_short_is_red(outcome: PassOutcome, fired: int, expected: int, red: bool) -> None:
    record = dataclasses.replace(outcome.record, counts={"packed": fired}, expected={"packed": expected})
    for table in (outcome_table([dataclasses.replace(outcome, record=record)]), record_table([record])):
        (text,) = table.columns[1].cells
        assert isinstance(text, Text)
        assert (text.plain, text.style == SHORTFALL) == (f"packed {fired}/{expected}", red)


def test_a_shortfall_without_a_near_miss_is_not_silent(
    llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport, short_outcome: PassOutcome
) -> None:
    silent = dataclasses.replace(short_outcome, rejections=())
    replace_driver("optimize", dataclasses.replace(optimize_report, outcomes=(silent,)))
    assert "fell short: PackQKV" in llmc("optimize", "graph", "-o", "out").stdout


def test_many_shortfalls_are_cut(
    llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport, short_outcome: PassOutcome
) -> None:
    many = dataclasses.replace(short_outcome, rejections=tuple((f"node{i}", "no") for i in range(25)))
    replace_driver("optimize", dataclasses.replace(optimize_report, outcomes=(many,)))
    text = llmc("optimize", "graph", "-o", "out").stdout
    assert "node9:" in text
    assert "node10:" not in text
    assert "and 15 more; all of them with --json" in text


def test_strict_fails(llmc: Run, replace_driver: Replace) -> None:
    optimize = replace_driver("optimize", FusionContractError("PackQKV: packed fired 2 of 3 times"))
    result = llmc("optimize", "graph", "-o", "out", "--strict")
    assert optimize.call_args.args[2].strict is True
    assert result.exit_code == 6
    assert "packed fired 2 of 3 times" in result.stderr


def test_a_ledger_is_kept_where_it_is_asked_for(
    llmc: Run, replace_driver: Replace, optimize_report: OptimizeReport
) -> None:
    entry = LedgerEntry("PackQKV", "exact up to rounding", 0.001, 0.9375, 0.25, 0.5, 1000, 2345)
    optimize = replace_driver("optimize", dataclasses.replace(optimize_report, ledger=LedgerReport((entry,))))
    assert llmc("optimize", "graph", "-o", "out").exit_code == 0
    assert optimize.call_args.kwargs["verify"] is False
    result = llmc("optimize", "graph", "-o", "out", "--verify")
    assert optimize.call_args.kwargs["verify"] is True
    assert "Accuracy after each pass" in result.stdout
    assert "93.8%" in result.stdout


def test_a_pass_that_costs_too_much_is_shown_with_all_others(llmc: Run, replace_driver: Replace) -> None:
    entry = LedgerEntry("PackQKV", "exact up to rounding", 0.001, 0.9375, 0.25, 0.5, 1000, 2345)
    finding = LedgerFinding(0, ("PackQKV",), "it moved a logit", ("layers.1/MatMul",), "linear", "out.repro/00_pack")
    replace_driver("optimize", LedgerError(LedgerReport((entry,), (finding,))))
    result = llmc("optimize", "graph", "-o", "out", "--verify")
    assert result.exit_code == 8
    assert "93.8%" in result.stdout
    assert "PackQKV: it moved a logit, at layers.1/MatMul; run 'python out.repro/00_pack/repro.py'" in result.stderr
    as_json = llmc("optimize", "graph", "-o", "out", "--verify", "--json")
    assert json.loads(as_json.stdout)["ledger"]["findings"][0]["nodes"] == ["layers.1/MatMul"]


def test_dry_run_needs_no_output_and_runs_nothing(llmc: Run, replace_driver: Replace) -> None:
    optimize = replace_driver("optimize", AssertionError("it ran"))
    planned = (PlannedPass("PackQKV", {}), PlannedPass("QuantizeWeights", {"bits": 4, "names": ["[a]"]}))
    plan = replace_driver("plan", planned)
    result = llmc("optimize", "graph", "--dry-run", "--precision", "int4")
    assert result.exit_code == 0, result.stderr
    assert plan.call_args.args == (Path("graph"), OptimizeOptions(precision="int4"))
    assert "bits=4, names=['[a]']" in result.stdout
    as_json = llmc("optimize", "graph", "-o", "out", "--dry-run", "--json")
    assert [item["name"] for item in json.loads(as_json.stdout)["passes"]] == ["PackQKV", "QuantizeWeights"]
    assert not optimize.called
