"""Which measurements the ceilings are made of, with compiled loops and without."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.runtimes.bench import ceilings
from llmc.runtimes.bench.ceilings import Ceilings, measure_ceilings
from llmc.runtimes.kernels.library import KernelsUnavailable
from llmc.runtimes.machine.arithmetic import Rate
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.summary import Summary


def read_at(rate: float, **facts: Any) -> Bandwidth:
    return Bandwidth(Summary.of([rate]), 3, 1 << 30, 1 << 20, **facts)


def rate_of(rate: float, threads: int = 3, **facts: Any) -> Rate:
    return Rate(Summary.of([rate]), threads, **facts)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Measurements that say what they were asked; pinned threads are slower in reading, faster in arithmetic."""
    loops = SimpleNamespace(variant="avx", read=object(), float32=object(), int8=object())
    made = SimpleNamespace(reads=0, kernels=lambda: loops)

    def read(threads: int, *, pinned: bool, read: Any = None, kernel: str = "numpy") -> Bandwidth:
        made.reads += 1
        assert (threads, read) == (3, loops.read if kernel == "avx" else None)
        return read_at(80.0 if pinned else 90.0, kernel=kernel, pinned=pinned)

    def rate(work: Any, threads: int, *, kernel: str, pinned: bool) -> Rate:
        assert (threads, kernel) == (3, "avx")
        return rate_of({loops.float32: 10.0, loops.int8: 40.0}[work] + pinned, kernel=kernel, pinned=pinned)

    monkeypatch.setattr(ceilings, "ceiling_kernels", lambda: made.kernels())
    monkeypatch.setattr(ceilings, "measure_read_bandwidth", read)
    monkeypatch.setattr(ceilings, "measure_rate", rate)
    monkeypatch.setattr(ceilings, "measure_numpy", lambda: rate_of(5.0, 0, kernel="numpy"))
    monkeypatch.setattr(ceilings, "can_pin", lambda: True)
    measure_ceilings.cache_clear()
    yield made
    measure_ceilings.cache_clear()


def test_compiled_loops_measure_left_to_the_system_and_pinned(machine: SimpleNamespace) -> None:
    found = measure_ceilings(3)
    assert [(read.pinned, read.kernel) for read in found.reads] == [(False, "avx"), (True, "avx")]
    assert [rate.pinned for rate in found.float32] == [rate.pinned for rate in found.int8] == [False, True]
    assert (found.read.bytes_per_second.median, found.float_rate, found.int8_rate) == (90.0, 11.0, 41.0)
    assert (found.why, found.device) == ("", None)


def test_a_process_measures_once(machine: SimpleNamespace) -> None:
    assert measure_ceilings(3) is measure_ceilings(3)
    assert machine.reads == 2


def test_without_loops_numpy_measures_and_says_so(machine: SimpleNamespace) -> None:
    def none() -> None:
        raise KernelsUnavailable("no C compiler is installed")

    machine.kernels = none
    found = measure_ceilings(3)
    assert [read.kernel for read in found.reads] == ["numpy", "numpy"]
    assert (found.float_rate, found.int8_rate) == (5.0, None)
    assert found.why == "measured with NumPy, without int8: no C compiler is installed"


def test_where_threads_cannot_be_pinned_there_is_one_of_each(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "can_pin", lambda: False)
    found = measure_ceilings(3)
    assert [len(each) for each in (found.reads, found.float32, found.int8)] == [1, 1, 1]


def test_of_nothing_there_is_no_rate() -> None:
    assert Ceilings((read_at(1.0),)).float_rate is None
