"""Threads that begin one piece of work each at the same moment.

In: a piece of work per thread, which releases the interpreter's lock. Out: seconds until the last one is done.

Pinned, each thread stays on one core of its own (the first hardware thread of each core that this process may use,
then the others); else the system places them, as it places an engine's.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llmc.compiler.base.processors import CPU_DEVICES, core_of, usable_cpus

BUDGET_S = 1.0
"""A measurement takes about so long at most, on a busy machine too: one pass is the least."""


def can_pin() -> bool:
    """Whether this system lets a thread be bound to a processor."""
    return hasattr(os, "sched_setaffinity")


def seconds_together(work: Sequence[Callable[[], object]], *, pinned: bool = False) -> float:
    """Seconds from the moment at which all threads are ready until the last has done its work.

    Args:
        work: One for each thread, at least one. What one raises is raised here, after all are done.
        pinned: Each thread on a core of its own; needs :func:`can_pin`.
    """
    ready = threading.Barrier(len(work) + 1)
    places: Sequence[int | None] = pinned_places(len(work)) if pinned else [None] * len(work)

    def run(task: Callable[[], object], place: int | None) -> None:
        try:
            if place is not None:
                os.sched_setaffinity(0, {place})  # of this thread alone, which ends with the pass
            ready.wait()
        except Exception:
            ready.abort()
            raise
        task()

    with ThreadPoolExecutor(len(work)) as team:
        waiting = [team.submit(run, *pair) for pair in zip(work, places, strict=True)]
        with contextlib.suppress(threading.BrokenBarrierError):  # what broke it is raised below
            ready.wait()
        begin = time.perf_counter()
        for thread in waiting:
            thread.result()
        return time.perf_counter() - begin


def timed_passes(work: Sequence[Callable[[], object]], passes: int, *, pinned: bool = False) -> list[float]:
    """Seconds of each of ``passes`` passes after one that does not count; fewer where :data:`BUDGET_S` is spent."""
    spent: list[float] = []
    for number in range(passes + 1):
        spent.append(seconds_together(work, pinned=pinned))
        if number and sum(spent) >= BUDGET_S:
            break
    return spent[1:]


def pinned_places(count: int, cpus: Iterable[int] | None = None, devices: Path = CPU_DEVICES) -> list[int]:
    """A processor for each of ``count`` threads: one of every core first, and again where there are few."""
    usable = sorted(usable_cpus() if cpus is None else cpus)
    seen: dict[str, int] = {}
    rank = {}
    for cpu in usable:
        core = core_of(cpu, devices)
        rank[cpu] = seen[core] = seen.get(core, -1) + 1
    order = sorted(usable, key=lambda cpu: (rank[cpu], cpu))
    return [order[thread % len(order)] for thread in range(count)]
