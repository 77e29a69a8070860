"""How much of memory is read, by whom, and what its time counts for; the clock is made up."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.machine import bandwidth
from llmc.runtimes.machine.bandwidth import Bandwidth, default_buffer_bytes, measure_read_bandwidth
from llmc.runtimes.machine.summary import Summary

KIB = 1 << 10


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The parts that are read, and how; the passes take 2, 4, 8 … s."""
    read: list[list[Any]] = []

    def timed(work: list[Any], count: int, *, pinned: bool) -> list[float]:
        read.append([[part for task in work for part in task.args], {task.func for task in work}, pinned])
        return [2.0**number for number in range(1, count + 1)]

    monkeypatch.setattr(bandwidth, "timed_passes", timed)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 4 * KIB)
    return read


def test_bytes_of_all_threads(passes: list[list[Any]]) -> None:
    found = measure_read_bandwidth(3, buffer_bytes=24 * KIB + 23, passes=3)
    assert found == Bandwidth(Summary(6 * KIB, 3 * KIB, 12 * KIB, 3), 3, 24 * KIB, 4 * KIB)
    ((parts, read, pinned),) = passes
    assert [part.nbytes for part in parts] == [8 * KIB] * 3
    assert all(part.all() for part in parts), "pages that were never written are all the same one"
    assert (read, pinned) == ({bandwidth.or_words}, False)


def test_what_reads_is_the_callers(passes: list[list[Any]]) -> None:
    reads: list[Any] = []
    found = measure_read_bandwidth(1, buffer_bytes=16, read=reads.append, kernel="some", pinned=True)
    assert (found.kernel, found.pinned) == ("some", True)
    assert passes[0][1:] == [{reads.append}, True]


def test_numpy_reads_every_word() -> None:
    words = np.zeros(1000, np.uint64)
    words[-1] = 5
    assert bandwidth.or_words(words) == 5


def test_a_word_a_thread_is_the_least(passes: list[list[Any]]) -> None:
    assert measure_read_bandwidth(2, buffer_bytes=16, passes=1).buffer_bytes == 16
    for threads, buffer, count in ((2, 15, 1), (0, 16, 1), (1, 16, 0)):
        with pytest.raises(UsageError, match="must be positive"):
            measure_read_bandwidth(threads, buffer_bytes=buffer, passes=count)


@pytest.mark.parametrize(
    ("cache", "free", "size"),
    [
        (1 << 20, 64 << 30, 512 << 20),  # at least 512 MiB
        (256 << 20, 64 << 30, 1 << 30),  # four times the cache
        (256 << 20, 2 << 30, 512 << 20),  # at most a quarter of what is free
    ],
)
def test_the_default_buffer(monkeypatch: pytest.MonkeyPatch, cache: int, free: int, size: int) -> None:
    memory = SimpleNamespace(available=free, total=1 << 40)
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: cache)
    monkeypatch.setattr(bandwidth, "psutil", SimpleNamespace(virtual_memory=lambda: memory))
    assert default_buffer_bytes() == size


@pytest.mark.parametrize(("buffer", "reached"), [(2047, False), (2048, True)])
def test_twice_the_cache_reaches_memory(buffer: int, reached: bool) -> None:
    found = Bandwidth(Summary(1.0, 1.0, 1.0, 1), 1, buffer, 1024)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["reaches_memory"] is found.reaches_memory is reached
    assert (plain["bytes_per_second"]["median"], plain["threads"], plain["buffer_bytes"]) == (1.0, 1, buffer)
