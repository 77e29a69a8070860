"""Rates of arithmetic: what their figures count; the passes are made up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.machine import arithmetic
from llmc.runtimes.machine.arithmetic import Rate, measure_numpy, measure_rate
from llmc.runtimes.machine.summary import Summary


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each measurement was asked; its passes take 2 and 4 seconds."""
    asked: list[Any] = []

    def timed(work: Any, count: int, *, pinned: bool = False) -> list[float]:
        asked.append((len(work), count, pinned))
        for task in work:
            task()
        return [2.0, 4.0]

    monkeypatch.setattr(arithmetic, "timed_passes", timed)
    return asked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the work moves."""
    now = [0.0]
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: now[0])
    return now


def test_operations_of_all_threads_in_a_pass_that_is_long_enough(passes: list[Any], clock: list[float]) -> None:
    rounds: list[int] = []

    def work(count: int) -> float:
        rounds.append(count)
        clock[0] += count * 0.002
        return 10.0 * count

    rate = measure_rate(work, 3, kernel="some", pinned=True, passes=2)
    # Of 8 rounds, which take 16 ms, each of three threads.
    assert rate == Rate(Summary.of([120.0, 60.0]), 3, "some", True)
    assert passes == [(3, 2, True)]
    assert rounds == [1, 2, 4, 8, 8, 8, 8]


def test_less_than_a_thread_or_a_pass_is_refused() -> None:
    for threads, count in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="must be positive"):
            measure_rate(lambda rounds: 1.0, threads, kernel="some", passes=count)


def test_numpy_multiplies_matrices(passes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "MATRIX", 10)
    rate = measure_numpy(passes=2)
    assert rate == Rate(Summary.of([1000.0, 500.0]), 0, "numpy")
    assert Rate.from_json(json.loads(json.dumps(rate.to_json()))) == rate
