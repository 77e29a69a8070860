"""Earlier reports: what they are good for, and which are not comparable."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.document import write_report
from llmc.runtimes.bench.gate.baseline import read_baseline, subjects_of_gate
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.gate.run import RecordedBaseline
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchCase, BenchReport, Subject
from llmc.runtimes.machine.fingerprint import machine_fingerprint

from ..reports import CASE, MACHINE, make_report
from .gate_records import make_gate

OPTIONS = BenchOptions(runs=3, threads=2)
SLOWER = ("decode_tps < 0.97*baseline",)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "before.json"


def earlier(**changes: Any) -> BenchReport:
    return replace(make_report(threads=2), **{"gate": make_gate(starts=6), **changes})


def test_figures_of_the_candidate(file: Path) -> None:
    write_report(earlier(), file)
    baseline = read_baseline(file, [CASE], OPTIONS, MACHINE)
    assert baseline.name == "before.json"
    (starts,) = baseline.figures.values()
    assert [start["decode_tokens_per_s"] for start in starts] == [100.0 + start for start in range(6)]


def test_a_reader_is_told_what_it_cannot_know(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_report(earlier(), file)
    read_baseline(file, [CASE], OPTIONS, MACHINE)
    (only,) = caplog.messages
    assert "was measured at another time" in only


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        (earlier(gate=None), r"has the runs of one process.*llmc bench ENGINE --starts 20 --json"),
        (earlier(gate=make_gate(starts=4)), r"has 4 starts of pp12\+tg5 x3, and 5 are needed"),
    ],
)
def test_too_little(file: Path, report: BenchReport, complaint: str) -> None:
    write_report(report, file)
    with pytest.raises(UsageError, match=complaint):
        read_baseline(file, [CASE], OPTIONS, MACHINE, anyway=True)


def test_other_cases(file: Path) -> None:
    write_report(earlier(), file)
    with pytest.raises(UsageError, match=r"has 0 starts of pp99\+tg5.*it has pp12\+tg5 x3: measure"):
        read_baseline(file, [CASE, BenchCase(99, 5)], OPTIONS, MACHINE, anyway=True)


def other_definition(plain: dict[str, Any]) -> None:
    plain["conventions"]["ttft"] = "something else"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda plain: plain["machine"].update(cpu_model="Other CPU"), "processor is Other CPU, here Some CPU"),
        (lambda plain: plain["machine"].update(physical_cores=7), "cores are 7, here 6"),
        (lambda plain: plain["machine"].update(gpus=[]), "its GPUs are none, here NVIDIA Fake"),
        (lambda plain: plain["options"].update(threads=None), "its --threads is None, here 2"),
        (lambda plain: plain["options"].update(runs=9), "its --runs is 9, here 3"),
        (other_definition, "its ttft is defined otherwise (something else)"),
    ],
)
def test_what_is_not_comparable(
    file: Path, change: Callable[[Any], None], complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_report(earlier(), file)
    plain = json.loads(file.read_text())
    change(plain)
    file.write_text(json.dumps(plain))
    with pytest.raises(UsageError) as refused:
        read_baseline(file, [CASE], OPTIONS, MACHINE)
    assert "is not comparable: " in str(refused.value)
    assert complaint in str(refused.value)
    assert "--baseline-anyway" in str(refused.value)
    assert read_baseline(file, [CASE], OPTIONS, MACHINE, anyway=True).figures
    assert any(complaint in message for message in caplog.messages)


def test_what_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_baseline(tmp_path / "none.json", [CASE], OPTIONS, MACHINE)


def test_subjects(tmp_path: Path, file: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "before").mkdir()

    def subjects(**options: Any) -> tuple[Subject, Subject | RecordedBaseline | None]:
        return subjects_of_gate([tmp_path / "engine"], [CASE], OPTIONS, GateOptions(fail_if=SLOWER, **options))

    candidate, baseline = subjects(baseline=str(tmp_path / "before"))
    assert isinstance(baseline, Subject)
    assert (candidate.label, baseline.label, baseline.path) == ("engine", "before, baseline", tmp_path / "before")
    assert candidate.label != subjects(baseline=str(tmp_path / "engine"))[1].label  # type: ignore[union-attr]
    assert subjects()[1] is None
    write_report(earlier(machine=machine_fingerprint()), file)
    _, recorded = subjects(baseline=str(file))
    assert isinstance(recorded, RecordedBaseline)
    write_report(earlier(), file)
    with pytest.raises(UsageError, match="not comparable"):
        subjects(baseline=str(file))
    assert isinstance(subjects(baseline=str(file), baseline_anyway=True)[1], RecordedBaseline)


def test_one_engine_is_judged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="judge one engine, not 2"):
        subjects_of_gate([tmp_path / "a", tmp_path / "b"], [CASE], OPTIONS, GateOptions(fail_if=SLOWER))


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="llmc")
