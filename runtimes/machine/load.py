"""How much of the cores other processes use while something is measured.

In: the kernel's CPU accounting (10 ms ticks). Out: a share of the cores, 0 to 1, that was busy for others.

A thread pool that spins collapses when its cores are shared: a benchmark beside one busy process was measured 3 to 20
times slower. So every measurement records this share, and a report says when it was high.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil

from llmc.compiler.base.processors import usable_cpus

BUSY_FIELDS = ("user", "nice", "system", "irq", "softirq", "steal")


class LoadMeter:
    """Measures the share of this process's cores that others used between :meth:`start` and :meth:`stop`.

    This process and its descendants (the benchmark's workers) count as its own. Time stolen by a hypervisor counts as
    other load: the core was not ours.
    """

    def __init__(self) -> None:
        self._cpus = sorted(usable_cpus())
        self._begin: tuple[float, float, float] | None = None

    def start(self) -> None:
        """Begin a window."""
        self._begin = self._sample()

    def stop(self) -> float:
        """Share of the cores, 0 to 1, that other processes used since :meth:`start`; 0 for an empty window.

        Raises:
            RuntimeError: :meth:`start` was not called.
        """
        if self._begin is None:
            raise RuntimeError("LoadMeter.stop() without start()")
        now = self._sample()
        elapsed, busy, own = (end - begin for end, begin in zip(now, self._begin, strict=True))
        capacity = elapsed * len(self._cpus)
        return min(1.0, max(0.0, busy - own) / capacity) if capacity > 0 else 0.0

    def _sample(self) -> tuple[float, float, float]:
        """(seconds now, busy seconds of the cores, CPU seconds of this process and its descendants)."""
        per_cpu = psutil.cpu_times(percpu=True)
        times = [per_cpu[cpu] for cpu in self._cpus if cpu < len(per_cpu)]
        busy = sum(getattr(cpu, name, 0.0) for cpu in times for name in BUSY_FIELDS)
        return time.perf_counter(), busy, _own_cpu_seconds()


def _own_cpu_seconds() -> float:
    own = psutil.Process()
    return cpu_seconds([own, *own.children(recursive=True)])


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system seconds of ``processes`` together; with their ended descendants."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        # The children's fields hold the time of descendants that ended and were waited for.
        total += times.user + times.system + times.children_user + times.children_system
    return total


def other_load(window_s: float = 1.0) -> float:
    """Share of the cores, 0 to 1, that other processes use during the next ``window_s`` seconds (it waits).

    The kernel counts in ticks of 10 ms: a window under half a second says little.
    """
    meter = LoadMeter()
    meter.start()
    time.sleep(window_s)
    return meter.stop()
