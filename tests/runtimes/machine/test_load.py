"""The share of the cores that others used, from made-up accounts of the kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmc.runtimes.machine import load
from llmc.runtimes.machine.load import LoadMeter, cpu_seconds, other_load


class Kernel:
    """Four cores, of which this process may use 1 and 2; seconds of each by what they went to."""

    def __init__(self) -> None:
        self.now, self.own = 10.0, 0.0
        self.cores = [dict.fromkeys(("user", "nice", "system", "irq", "softirq", "steal"), 100.0) for _ in range(4)]
        self.slept: list[float] = []

    def spend(self, core: int, **seconds: float) -> None:
        for name, value in seconds.items():
            self.cores[core][name] = self.cores[core].get(name, 0.0) + value


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(load, "usable_cpus", lambda: {2, 1})
    monkeypatch.setattr(
        load.psutil,
        "cpu_times",
        lambda percpu: [SimpleNamespace(**fields) for fields in made.cores] if percpu else None,
    )
    monkeypatch.setattr(load, "_own_cpu_seconds", lambda: made.own)
    clock = SimpleNamespace(perf_counter=lambda: made.now, sleep=made.slept.append)
    monkeypatch.setattr(load, "time", clock)
    return made


def share(kernel: Kernel, seconds: float, own: float = 0.0, **spent: dict[str, float]) -> float:
    """What a meter says of a window in which the cores named were used."""
    meter = LoadMeter()
    meter.start()
    kernel.now += seconds
    kernel.own += own
    for core, fields in spent.items():
        kernel.spend(int(core.removeprefix("core")), **fields)
    return meter.stop()


def test_a_share_of_all_cores_that_may_be_used(kernel: Kernel) -> None:
    assert share(kernel, 10.0, core1={"user": 2.0}, core2={"system": 3.0}) == pytest.approx(5 / 20)
    assert share(kernel, 10.0, core0={"user": 9.0}, core3={"user": 9.0}) == 0.0


@pytest.mark.parametrize("field", ["user", "nice", "system", "irq", "softirq", "steal"])
def test_what_counts_as_busy(kernel: Kernel, field: str) -> None:
    assert share(kernel, 10.0, core1={field: 5.0}) == pytest.approx(0.25)


@pytest.mark.parametrize("field", ["idle", "iowait", "guest", "guest_nice"])
def test_what_does_not(kernel: Kernel, field: str) -> None:
    """A guest's time is in ``user`` already."""
    assert share(kernel, 10.0, core1={field: 5.0}) == 0.0


def test_this_process_is_no_other(kernel: Kernel) -> None:
    assert share(kernel, 10.0, own=4.0, core1={"user": 6.0}) == pytest.approx(2 / 20)
    assert share(kernel, 10.0, own=6.1, core1={"user": 6.0}) == 0.0, "the two accounts are not read at once"


def test_a_share_is_at_most_one_and_0_of_an_empty_window(kernel: Kernel) -> None:
    assert share(kernel, 1.0, core1={"user": 1.5}, core2={"user": 1.5}) == 1.0
    assert share(kernel, 0.0, core1={"user": 1.5}) == 0.0


def test_a_core_that_the_kernel_does_not_list(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "usable_cpus", lambda: {1, 7})
    assert share(kernel, 10.0, core1={"user": 5.0}) == pytest.approx(0.25)


def test_a_window_begins_with_its_start(kernel: Kernel) -> None:
    with pytest.raises(RuntimeError, match="without start"):
        LoadMeter().stop()
    assert other_load(0.25) == 0.0
    assert kernel.slept == [0.25]


def process(user: float, system: float, ended: float = 0.0, *, gone: bool = False) -> Any:
    def times() -> Any:
        if gone:
            raise psutil.NoSuchProcess(7)
        return SimpleNamespace(user=user, system=system, children_user=ended, children_system=2 * ended)

    return SimpleNamespace(cpu_times=times)


def test_seconds_of_processes_and_of_those_that_ended() -> None:
    assert cpu_seconds([process(1.0, 2.0), process(4.0, 8.0, ended=16.0)]) == 1 + 2 + 4 + 8 + 16 + 32
    assert cpu_seconds([process(1.0, 2.0), process(9.0, 9.0, gone=True), process(4.0, 8.0)]) == 15


def test_own_seconds_are_those_of_all_descendants(monkeypatch: pytest.MonkeyPatch) -> None:
    def children(recursive: bool = False) -> list[Any]:
        return [process(1.0, 0.0), *([process(2.0, 0.0)] if recursive else [])]

    own = SimpleNamespace(children=children, cpu_times=process(4.0, 0.0).cpu_times)
    monkeypatch.setattr(load.psutil, "Process", lambda: own)
    assert load._own_cpu_seconds() == 7.0
