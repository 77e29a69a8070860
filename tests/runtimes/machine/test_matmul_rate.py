"""The arithmetic of a GPU, on a torch that is made up; what goes wrong in its process is a line in the log."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.runtimes.machine import matmul_rate
from llmc.runtimes.machine.arithmetic import Rate
from llmc.runtimes.machine.matmul_rate import matmul_rate_of_device, measure_matmul
from llmc.runtimes.machine.summary import Summary

RATE = Rate(Summary(4.0, 2.0, 8.0, 3), 0, "torch")


class Torch(ModuleType):
    """A device whose first five products take 2 ms each, and the others one."""

    float16 = "float16"

    def __init__(self) -> None:
        super().__init__("torch")
        self.now, self.products, self.available = 0.0, 0, True
        self.cuda = SimpleNamespace(is_available=lambda: self.available, Event=lambda enable_timing: Event(self))

    def randn(self, *shape: int, device: str, dtype: str) -> Any:
        return (shape, device, dtype)

    def mm(self, left: Any, right: Any) -> None:
        assert left == right == ((10, 10), "cuda", "float16")
        self.products += 1
        self.now += 2.0 if self.products <= 5 else 1.0


class Event:
    def __init__(self, torch: Torch) -> None:
        self.torch, self.at, self.waited = torch, -1.0, False

    def record(self) -> None:
        self.at = self.torch.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: Event) -> float:
        assert end.waited
        return end.at - self.at


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    fake = Torch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_operations_of_a_product_and_the_first_pass_does_not_count(torch: Torch) -> None:
    rate = measure_matmul(size=10, passes=3)
    assert rate == Rate(Summary.of([2 * 10**3 / 1e-3] * 3), 0, "torch")
    assert torch.products == 20


def test_no_device_and_no_torch(torch: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.available = False
    with pytest.raises(EngineError, match="no CUDA device"):
        measure_matmul()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="install it"):
        measure_matmul()


def test_the_program_prints_what_the_benchmark_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matmul_rate, "measure_matmul", lambda: RATE)
    assert matmul_rate.main() == 0
    printed = capsys.readouterr().out
    answer = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert json.loads(printed)["kernel"] == "torch"
    assert matmul_rate_of_device() == RATE


def test_what_goes_wrong_is_said(
    torch: Torch,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.available = False
    assert matmul_rate.main() == EngineError.exit_code
    answer = subprocess.CompletedProcess([], 1, "", capsys.readouterr().err)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    with caplog.at_level(logging.WARNING):
        assert matmul_rate_of_device() is None
    assert "the GPU's arithmetic was not measured: torch sees no CUDA device" in caplog.text
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError("no such program")))
    assert matmul_rate_of_device() is None
    assert "no such program" in caplog.text
