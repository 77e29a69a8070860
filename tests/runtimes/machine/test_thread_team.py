"""Threads that begin together: where they run, what they take, and what happens when one fails."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.processors import usable_cpus
from llmc.runtimes.machine import thread_team
from llmc.runtimes.machine.thread_team import can_pin, pinned_places, seconds_together, timed_passes


def siblings(root: Path, pairs: dict[int, str]) -> Path:
    for cpu, text in pairs.items():
        (root / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{text}\n")
    return root


def test_one_thread_of_every_core_comes_first(tmp_path: Path) -> None:
    devices = siblings(tmp_path, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    assert pinned_places(5, [3, 1, 0, 2], devices) == [0, 2, 1, 3, 0]
    assert pinned_places(2, [1, 2, 3], devices) == [1, 2]


def test_the_slowest_thread_is_what_counts() -> None:
    seen = set()

    def work(seconds: float) -> None:
        seen.add(threading.get_ident())
        time.sleep(seconds)

    assert seconds_together([lambda: work(0.0), lambda: work(0.05)]) >= 0.04
    assert len(seen) == 2
    assert threading.get_ident() not in seen


@pytest.mark.skipif(not can_pin(), reason="threads cannot be pinned here")
def test_a_pinned_thread_has_one_processor_and_the_caller_keeps_its_own() -> None:
    before, masks = usable_cpus(), []
    work = [lambda: masks.append(os.sched_getaffinity(0))] * 2
    seconds_together(work, pinned=True)
    assert sorted(masks, key=sorted) == sorted(({place} for place in pinned_places(2)), key=sorted)
    masks.clear()
    seconds_together(work)
    assert masks == [set(before)] * 2
    assert usable_cpus() == before


def test_a_failure_is_raised_and_nobody_waits_for_ever() -> None:
    def fail() -> None:
        raise OSError("no memory here")

    with pytest.raises(OSError, match="no memory here"):
        seconds_together([fail, lambda: None])


def test_a_thread_that_cannot_be_pinned_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    begun: list[int] = []
    with pytest.raises((PermissionError, threading.BrokenBarrierError)):
        seconds_together([lambda: begun.append(1)] * 2, pinned=True)
    assert not begun


@pytest.mark.parametrize(("seconds", "counted"), [(0.01, 4), (0.4, 2), (5.0, 1)])
def test_a_slow_machine_makes_fewer_passes(monkeypatch: pytest.MonkeyPatch, seconds: float, counted: int) -> None:
    monkeypatch.setattr(thread_team, "seconds_together", lambda work, *, pinned: seconds)
    assert timed_passes([lambda: None], 4) == [seconds] * counted


def test_a_pass_is_timed_from_when_all_are_ready_until_the_last_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read after the barrier opens, and after every thread has ended; threads tell what they do."""
    told: list[str] = []

    class Barrier:
        def __init__(self, count: int) -> None:
            told.append(f"barrier of {count}")

        def wait(self) -> None:
            told.append("ready")

    class Team:
        def __init__(self, count: int) -> None:
            told.append(f"{count} threads")

        def __enter__(self) -> Team:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, run: Any, *arguments: Any) -> SimpleNamespace:
            run(*arguments)
            return SimpleNamespace(result=lambda: told.append("ended"))

    def clock() -> float:
        told.append("clock")
        return 10.0 * told.count("clock")

    monkeypatch.setattr(
        thread_team, "threading", SimpleNamespace(Barrier=Barrier, BrokenBarrierError=threading.BrokenBarrierError)
    )
    monkeypatch.setattr(thread_team, "ThreadPoolExecutor", Team)
    monkeypatch.setattr(thread_team, "time", SimpleNamespace(perf_counter=clock))
    assert seconds_together([lambda: told.append("work")] * 2) == 10.0
    begun = ["ready", "work"] * 2
    assert told == ["barrier of 3", "2 threads", *begun, "ready", "clock", "ended", "ended", "clock"]
