"""Conditions are verdicts; without any, figures are."""

from __future__ import annotations

from dataclasses import replace

from llmc.compiler.ci.suite import Verdict
from llmc.compiler.cli.suites.gate_suite import figures_suite, gate_suite

from ....runtimes.bench.gate.gate_records import make_comparison, make_gate
from ....runtimes.bench.reports import make_report

FIGURES = "pp12+tg5 x3: decode_tps 0.9512 (0.9433 to 0.9602)"


def test_outcomes() -> None:
    failed = gate_suite(make_gate("failed"))
    assert (failed.name, failed.subject, failed.facts["compared with"]) == ("llmc bench", "mine", "before")
    assert failed.facts["outcome"].startswith("failed against before")
    name = "fails if decode_tps < 0.97*baseline"
    message = "it holds in pp12+tg5 x3; times the baseline's, 14 starts"
    assert failed.verdicts == (Verdict(name, "failed", FIGURES, "0.97", message),)
    (passed,) = gate_suite(make_gate("passed")).verdicts
    assert passed == Verdict(name, "passed", FIGURES, "0.97", "times the baseline's, 14 starts")
    (undecided,) = gate_suite(make_gate("undecided")).verdicts
    assert undecided.outcome == "undecided"
    assert undecided.measured == f"{FIGURES}; pp8+tg5: decode_tps - (-)"
    assert undecided.message.startswith("the intervals hold the limit still; ")


def test_undecided_may_be_a_failure() -> None:
    assert gate_suite(make_gate("undecided"), undecided_fails=True).verdicts[0].outcome == "failed"
    assert gate_suite(make_gate("passed"), undecided_fails=True).verdicts[0].outcome == "passed"


def test_an_absolute_limit_has_no_baseline() -> None:
    gate = make_gate("passed")
    comparison = make_comparison("passed", of_baseline=False)
    condition = replace(gate.conditions[0], comparisons=(comparison,))
    suite = gate_suite(replace(gate, conditions=(condition,), baseline=""))
    assert suite.verdicts[0].message == "14 starts"
    assert "compared with" not in suite.facts


def test_a_baseline_that_is_recorded() -> None:
    (only,) = gate_suite(replace(make_gate("passed"), conditions=())).verdicts
    assert (only.name, only.outcome, only.measured) == ("starts", "passed", "14")


def test_figures() -> None:
    suite = figures_suite(make_report())
    assert suite.subject == "mine, other"
    assert [(verdict.name, verdict.outcome, verdict.measured) for verdict in suite.verdicts] == [
        ("mine, pp12+tg5 x3", "passed", "decode 150 tok/s, prefill 2880 tok/s"),
        ("other, pp12+tg5 x3", "passed", "decode 37.5 tok/s, prefill 72 tok/s"),
    ]
    assert suite.verdicts[0].message == "first; second"
