"""The check of the gate: what it makes of gates, and that its slower engine is slower."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.gate import run
from tests.gate.run import GateRun, known, main, table, verdict
from tests.gate.slow_worker import SlowSession

FAILED = GateRun("slower", 0, "failed", 0.952, 0.947, 0.956, 12, 80.0)
PASSED = GateRun("unchanged", 0, "passed", 1.001, 0.996, 1.004, 12, 80.0)


def gates(failing_unchanged: int, failing_slower: int) -> list[GateRun]:
    """20 of each kind."""
    failing = {PASSED: failing_unchanged, FAILED: failing_slower}
    return [
        replace(run, number=number, outcome="failed" if number < count else "undecided")
        for run, count in failing.items()
        for number in range(20)
    ]


@pytest.mark.parametrize(
    ("unchanged", "slower", "holds"), [(0, 20, True), (0, 19, True), (0, 18, False), (1, 20, False)]
)
def test_verdict(unchanged: int, slower: int, holds: bool) -> None:
    assert verdict(gates(unchanged, slower), 20) is holds


def test_table() -> None:
    lines = table([FAILED, replace(PASSED, low=None)]).splitlines()
    assert lines[1].split() == ["unchanged", "0", "passed", "1.0010", "-", "12", "80"]
    assert lines[2].split() == ["slower", "0", "failed", "0.9520", "0.947", "to", "0.956", "12", "80"]
    assert lines[3:] == ["unchanged: 0 failed, 1 passed, 0 undecided", "slower: 1 failed, 0 passed, 0 undecided"]


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Which gates were run; each comes out as it should, the third one is interrupted."""
    done: list[tuple[str, int]] = []

    def run_one(asked: argparse.Namespace, kind: str, number: int, bandwidth: Any) -> GateRun:
        if len(done) == 2 and (kind, number) not in done:
            done.append((kind, number))
            raise KeyboardInterrupt
        done.append((kind, number))
        return replace(PASSED if kind == "unchanged" else FAILED, number=number)

    monkeypatch.setattr(run, "run_one", run_one)
    monkeypatch.setattr(run, "open_artifact", lambda path: None)
    monkeypatch.setattr(run, "measure_read_bandwidth", lambda threads: None)
    return done


def test_an_interrupted_check_goes_on(
    gated: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["engine", "--gates", "2", "--state", str(tmp_path / "new" / "state.jsonl")]
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    with (tmp_path / "new" / "state.jsonl").open("a") as file:
        file.write('{"kind": "unch')
    assert main(arguments) == 0
    order = [("unchanged", 0), ("slower", 0), ("unchanged", 1), ("unchanged", 1), ("slower", 1)]
    assert gated == order
    assert "unchanged: 0 failed, 2 passed, 0 undecided" in capsys.readouterr().out
    assert main(arguments) == 0
    assert gated == order
    assert main([*arguments, "--fresh"]) == 0
    assert gated[5:] == [("unchanged", 0), ("slower", 0), ("unchanged", 1), ("slower", 1)]


def test_state(tmp_path: Path) -> None:
    assert known(tmp_path / "none") == []
    (tmp_path / "state").write_text(json.dumps(asdict(FAILED)) + "\n")
    assert known(tmp_path / "state") == [FAILED]


def test_the_slower_worker_is_another_command(tmp_path: Path) -> None:
    mine, baseline = run.subjects(tmp_path, "slower")
    assert Path(mine.command[2]).is_file()
    assert (mine.path, baseline.path) == (tmp_path, tmp_path)
    assert mine.command != baseline.command
    same, baseline = run.subjects(tmp_path, "unchanged")
    assert same.command == baseline.command


class Sleeper:
    vocabulary = 7

    def forward(self, tokens: Sequence[int]) -> int:
        time.sleep(0.02)
        return len(tokens)


def test_a_slow_session_takes_its_share_more() -> None:
    session = SlowSession(Sleeper(), 0.5)
    begin = time.perf_counter()
    assert (session.forward([1, 2]), session.vocabulary) == (2, 7)
    assert time.perf_counter() - begin >= 0.03
