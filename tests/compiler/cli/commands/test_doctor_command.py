"""doctor: what this machine can do, and whether an engine fits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import Result

from llmc.compiler.insight import doctor, memory_fit
from llmc.runtimes.machine import fingerprint
from llmc.runtimes.machine.fingerprint import GpuDescription

Run = Callable[..., Result]


@pytest.mark.parametrize(("free", "code"), [(1 << 30, 0), (1000, 9)])
def test_doctor_says_whether_an_engine_fits(
    llmc: Run, engine: Path, monkeypatch: pytest.MonkeyPatch, free: int, code: int
) -> None:
    monkeypatch.setattr(memory_fit.psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=1 << 40))
    shown = llmc("doctor", "--model", engine, "--context", 100, "--batch", 2)
    assert shown.exit_code == code
    rows = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert f"│ free on this machine │ {'1000 bytes' if code else '1.00 GiB'} │" in rows
    assert f"│ fits │ {'no' if code else 'yes'} │" in rows
    as_json = llmc("doctor", "--model", engine, "--context", 100, "--batch", 2, "--json")
    assert as_json.exit_code == code
    value = json.loads(as_json.stdout)["model"]
    assert value["fits"] == (code == 0)
    assert value["plan"]["kv_cache"] == 2 * 100 * 32
    if code:
        assert shown.stderr.count("\n") == 1
        assert value["problem"] in shown.stderr


@pytest.mark.parametrize("option", ["--context", "--batch", "--chunk"])
def test_doctor_needs_an_engine_for_a_plan(llmc: Run, option: str) -> None:
    result = llmc("doctor", option, 10)
    assert result.exit_code == 2
    assert "--model DIR" in result.stderr


def test_doctor(llmc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor.examine()
    monkeypatch.setattr(doctor, "examine", lambda: report)
    shown = llmc("doctor")
    assert shown.exit_code == 0
    assert report.machine.cpu_model in shown.stdout
    for target in report.targets:
        assert target.target in shown.stdout
    value = json.loads(llmc("doctor", "--json").stdout)
    assert value == json.loads(json.dumps(report.to_json()))


def test_what_builds_is_not_said_to_run(llmc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = doctor.examine()
    status = doctor.TargetStatus("cuda", True, False, ("a GPU",))
    monkeypatch.setattr(doctor, "examine", lambda: dataclasses.replace(report, targets=(status,)))
    shown = [" ".join(line.split()) for line in llmc("doctor").stdout.splitlines()]
    assert "│ cuda │ yes │ no │ a GPU │" in shown


def test_doctor_shows_free_device_memory(llmc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (
        GpuDescription("H100", 80 << 30, compute_capability="9.0", free_bytes=79 << 30),
        GpuDescription("Other", 8 << 30, compute_capability="8.9"),
    )
    monkeypatch.setattr(fingerprint, "describe_gpus", lambda: gpus)
    text = llmc("doctor").stdout
    assert "H100, 80.00 GiB, 79.00 GiB free, compute capability 9.0" in text
    assert "Other, 8.00 GiB, free memory not told" in text
    assert json.loads(llmc("doctor", "--json").stdout)["gpus"][0]["free_bytes"] == 79 << 30


def test_doctor_keeps_brackets(llmc: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pip install 'llmc-toolchain[cuda]'`` must not lose its extra to markup."""
    status = doctor.TargetStatus("cuda", False, False, ("pip install 'llmc-toolchain[cuda]'",))
    report = doctor.examine()
    monkeypatch.setattr(
        doctor,
        "examine",
        lambda: doctor.DoctorReport(report.machine, report.packages, (), (), (status,), ("a [note]",)),
    )
    text = llmc("doctor").stdout
    assert "llmc-toolchain[cuda]" in text
    assert "note: a [note]" in text
