"""What a gate says at the end of a report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from llmc.runtimes.bench.gate.record import Outcome
from llmc.runtimes.bench.gate.table import figure, gate_lines, interval, sentence
from llmc.runtimes.bench.report import render_report

from ..reports import make_report
from .gate_records import make_comparison, make_gate


def text(*renderables: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(*renderables)
    return captured.get()


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (
            "failed",
            "failed against before: decode_tps < 0.97*baseline (pp12+tg5 x3); 14 starts of each engine in 123 s",
        ),
        ("passed", "passed against before: no condition holds; 14 starts of each engine in 123 s"),
        ("undecided", "undecided against before after 14 starts of each engine in 123 s: the machine is too noisy"),
    ],
)
def test_sentence(outcome: Outcome, words: str) -> None:
    assert sentence(make_gate(outcome)).startswith(words)
    assert sentence(replace(make_gate(outcome), baseline="")).startswith(words.replace(" against before", ""))


def test_rows() -> None:
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in text(*gate_lines(make_gate("undecided"))).splitlines()
        if "│" in line
    ]
    condition = "decode_tps < 0.97*baseline"
    assert rows == [
        [condition, "pp12+tg5 x3", "0.97", "0.9512", "0.9433 to 0.9602", "14", "undecided"],
        [condition, "pp8+tg5", "0.97", "-", "-", "0", "undecided"],
    ]
    assert "does not hold" in text(*gate_lines(make_gate("passed")))
    assert "│ holds" in text(*gate_lines(make_gate("failed")))


def test_cells() -> None:
    assert (figure(make_comparison("passed")), interval(make_comparison("passed"))) == ("0.9512", "0.9433 to 0.9602")
    assert interval(make_comparison("passed", high=None)) == "-"


def test_a_recorded_baseline_has_no_table() -> None:
    lines = gate_lines(replace(make_gate("passed"), conditions=(), baseline=""))
    assert text(*lines).strip() == "14 starts of each engine in 123 s, recorded as a baseline"


def test_it_is_part_of_the_report() -> None:
    assert "failed against before" in text(render_report(replace(make_report(), gate=make_gate())))
    assert "against" not in text(render_report(make_report()))
