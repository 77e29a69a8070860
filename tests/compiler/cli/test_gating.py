"""How ``llmc bench`` ends where it judges, and what continuous integration is told of every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec
from xml.etree import ElementTree

import pytest
from typer.testing import Result

from llmc.compiler.artifact.reports import Check, GraphChecks, VerifyReport
from llmc.compiler.base.errors import ArtifactError
from llmc.runtimes.bench import latency
from llmc.runtimes.bench.gate import run
from llmc.runtimes.bench.gate.record import Outcome
from llmc.runtimes.bench.gate.run import run_gate
from llmc.runtimes.bench.latency import run_benchmark

from ...runtimes.bench.gate.gate_records import make_gate
from ...runtimes.bench.reports import make_report
from ...runtimes.lint.lint_models import LENGTHS, save

Run = Callable[..., Result]
SLOWER = ("--fail-if", "decode_tps < 0.97*baseline", "--baseline")


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Outcome], Mock]:
    """``gated("failed")``: what every gate comes out with; two engines lie in ``tmp_path``."""
    for name in ("engine", "before"):
        (tmp_path / name).mkdir()

    def gate(outcome: Outcome) -> Mock:
        fake: Mock = create_autospec(run_gate, return_value=replace(make_report(), gate=make_gate(outcome)))
        monkeypatch.setattr(run, "run_gate", fake)
        return fake

    return gate


@pytest.mark.parametrize(
    ("outcome", "options", "code", "words"),
    [
        ("passed", (), 0, ""),
        ("failed", (), 12, "llmc: error: failed against before: decode_tps < 0.97*baseline (pp12+tg5 x3)"),
        ("undecided", (), 0, "warning: undecided against before after 14 starts"),
        ("undecided", ("--undecided", "fail"), 13, "llmc: error: undecided against before"),
        ("failed", ("--undecided", "fail"), 12, "llmc: error: failed"),
    ],
)
def test_exit_codes(
    llmc: Run, gated: Any, tmp_path: Path, outcome: Outcome, options: tuple[str, ...], code: int, words: str
) -> None:
    gated(outcome)
    result = llmc("bench", tmp_path / "engine", *SLOWER, tmp_path / "before", *options)
    assert result.exit_code == code, result.stderr
    assert words in " ".join(result.stderr.split())
    assert outcome in result.stdout


def test_what_is_measured(llmc: Run, gated: Any, tmp_path: Path) -> None:
    fake = gated("passed")
    options = ("--prompt", 64, "--gen", 16, "--runs", 3, "--starts", 30, "--time-limit", 60, "--threads", 2)
    assert llmc("bench", tmp_path / "engine", *SLOWER, tmp_path / "before", *options).exit_code == 0
    candidate, baseline, cases, measuring, gate = fake.call_args.args
    assert (candidate.label, baseline.label, baseline.path) == ("engine", "before, baseline", tmp_path / "before")
    assert [case.name for case in cases] == ["pp64+tg16"]
    assert (measuring.runs, measuring.threads) == (3, 2)
    assert (gate.fail_if, gate.starts, gate.time_limit) == (("decode_tps < 0.97*baseline",), 30, 60)


def test_what_continuous_integration_is_told(llmc: Run, gated: Any, tmp_path: Path) -> None:
    gated("failed")
    files = ("--junit", tmp_path / "junit.xml", "--summary", tmp_path / "summary.md", "--annotations")
    result = llmc("bench", tmp_path / "engine", *SLOWER, tmp_path / "before", *files, "--json", tmp_path / "r.json")
    assert result.exit_code == 12
    assert "::error title=llmc bench%3A fails if decode_tps < 0.97*baseline::mine: " in result.stderr
    assert ElementTree.parse(tmp_path / "junit.xml").getroot()[0].get("failures") == "1"
    assert "**FAILED**" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["gate"]["outcome"] == "failed"


def test_a_plain_benchmark_has_outputs_too(llmc: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(latency, "run_benchmark", create_autospec(run_benchmark, return_value=make_report()))
    assert llmc("bench", tmp_path / "engine", "--summary", tmp_path / "summary.md").exit_code == 0
    assert "| passed | mine, pp12+tg5 x3 | decode 150 tok/s" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--fail-if", "speed < 3"), "speed is no metric; they are decode_tps, prefill_tps, decode_tokens_per_s"),
        (("--fail-if", "decode_tps < 0.97*baseline"), "--fail-if speaks of a baseline: name an engine"),
        (("--baseline", "x"), "--baseline is for --fail-if"),
        ((*SLOWER, "none.json"), "none.json cannot be read"),
        (("--fail-if", "decode_tps < 3", "--peer", "genai=python:x"), "leave --peer out"),
        (("--fail-if", "decode_tps < 3", "--starts", 3), "3 starts cannot decide 2 comparisons"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(
    llmc: Run, tmp_path: Path, options: tuple[object, ...], complaint: str
) -> None:
    (tmp_path / "engine").mkdir()
    result = llmc("bench", tmp_path / "engine", *options)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_verify(llmc: Run, replace_driver: Any, tmp_path: Path) -> None:
    graph = GraphChecks("model.onnx", "theirs", (Check("mean KL divergence", 0.2, 0.1),))
    replace_driver("verify", VerifyReport((graph,)))
    result = llmc("verify", "engine", "--junit", tmp_path / "junit.xml", "--annotations")
    assert result.exit_code == 8
    assert ElementTree.parse(tmp_path / "junit.xml").getroot()[0].get("failures") == "1"
    assert "::error title=llmc verify%3A model.onnx%3A mean KL divergence::engine: 0.2, limit ≤ 0.1" in result.stderr


def test_verify_that_cannot_begin(llmc: Run, replace_driver: Any, tmp_path: Path) -> None:
    replace_driver("verify", ArtifactError("engine is no artifact"))
    assert llmc("verify", "engine", "--junit", tmp_path / "junit.xml").exit_code == 7
    (error,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("error")
    assert error.get("message") == "engine is no artifact"


def test_lint(llmc: Run, tmp_path: Path) -> None:
    path = save(LENGTHS, tmp_path / "model.onnx")
    result = llmc(
        "lint",
        path,
        "--target",
        "tensorrt-rtx-1.7",
        "--format",
        "json",
        "--summary",
        tmp_path / "s.md",
        "--annotations",
    )
    assert result.exit_code == 8
    assert json.loads(result.stdout)["findings"]
    assert "silently wrong: attention-lengths" in (tmp_path / "s.md").read_text()
    assert result.stderr.startswith("::error title=llmc lint%3A silently wrong%3A attention-lengths::")
