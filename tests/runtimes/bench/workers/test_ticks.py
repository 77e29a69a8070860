"""Which moments the clocks of decode steps note, and the seconds between them."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.runtimes.bench.workers import ticks
from llmc.runtimes.bench.workers.ticks import CudaTicks, HostTicks, StreamTicks, make_ticks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's clock says 1, 2, 4, 8 … seconds."""
    moments = (2.0**count for count in itertools.count())
    monkeypatch.setattr(ticks, "time", SimpleNamespace(perf_counter=lambda: next(moments)))


def test_seconds_between_neighbours(clock: None) -> None:
    host = HostTicks()
    for _ in range(4):
        host.tick()
    assert host.gaps() == (1.0, 2.0, 4.0)


def test_one_moment_has_no_gap(clock: None) -> None:
    host = HostTicks()
    host.tick()
    assert host.gaps() == ()


def test_a_streamer_notes_steps_and_not_the_prompt(clock: None) -> None:
    stream = StreamTicks()
    stream.put(np.zeros((3, 7)))
    for _ in range(3):
        stream.put(np.zeros(3))
    stream.end()
    assert stream.gaps() == (1.0, 2.0)


class Event:
    """A CUDA event; the device reaches each 250 ms after the one before."""

    made: list[Event]

    def __init__(self, *, enable_timing: bool = False) -> None:
        self.timing, self.recorded, self.waited = enable_timing, False, False
        self.number = len(self.made)
        self.made.append(self)

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: Event) -> float:
        assert self.timing
        assert later.timing
        assert self.made[-1].waited, "events behind the one that is waited for are not there yet"
        return 250.0 * (later.number - self.number)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    Event.made = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(Event=Event)))
    return Event.made


def test_a_device_is_timed_by_its_events(events: list[Event]) -> None:
    device = CudaTicks()
    for _ in range(3):
        device.tick()
    assert device.gaps() == (0.25, 0.25)
    assert all(event.recorded for event in events)


@pytest.mark.parametrize(("kind", "clock_of"), [("cuda", CudaTicks), ("cpu", HostTicks)])
def test_the_clock_of_a_device(kind: str, clock_of: Any) -> None:
    assert type(make_ticks(SimpleNamespace(type=kind))) is clock_of
