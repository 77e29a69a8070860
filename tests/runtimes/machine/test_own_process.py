"""Measuring in a process of its own: what it prints, or the reason why there is nothing."""

from __future__ import annotations

import sys

import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.machine.own_process import measured_apart, print_measured


class Found:
    """A measured thing."""

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return {"found": 3}


def refused() -> Found:
    raise EngineError("no device")


def test_both_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_measured(Found) == 0
    assert capsys.readouterr().out == '{"found": 3}\n'
    assert print_measured(refused) == EngineError.exit_code
    assert capsys.readouterr().err == "no device\n"
    assert measured_apart((sys.executable, "-c", "print('{\"found\": 3}')"), 60, "it") == {"found": 3}


@pytest.mark.parametrize(
    ("code", "why"),
    [("raise SystemExit('first\\nlast')", "last"), ("raise SystemExit(3)", "no message"),
     ("import time; time.sleep(60)", "timed out after")],
)  # fmt: skip
def test_a_reason_is_logged(code: str, why: str, caplog: pytest.LogCaptureFixture) -> None:
    assert measured_apart((sys.executable, "-c", code), 1, "the speed of it") is None
    assert "the speed of it was not measured: " in caplog.text
    assert why in caplog.text
