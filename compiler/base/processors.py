"""Processors that this process may use: its affinity mask, and the quota of its control groups.

In: ``/proc``, ``/sys``. Out: counts, for whoever starts threads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)
CPU_DEVICES = Path("/sys/devices/system/cpu")
CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> frozenset[int]:
    """Numbers of the logical CPUs in this process's affinity mask (all of them where there is no mask)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int] | None = None, devices: Path = CPU_DEVICES) -> int:
    """Physical cores behind ``cpus`` (default: this process's), at least 1, at most the control group's quota."""
    chosen = usable_cpus() if cpus is None else frozenset(cpus)
    cores = {core_of(cpu, devices) for cpu in chosen}
    quota = cgroup_cpu_quota()
    count = len(cores) if quota is None else min(len(cores), int(quota))
    return max(1, count)


def most_threads() -> int:
    """Threads that can run at the same time: the logical CPUs of the affinity mask, at most the quota, at least 1."""
    count, quota = len(usable_cpus()), cgroup_cpu_quota()
    return max(1, count if quota is None else min(count, int(quota)))


def engine_threads(asked: int | None, recorded: int | None) -> int:
    """Threads of an engine: those asked for now, else those recorded when it was built, else one per physical core.

    A record is another machine's word: of it no more is taken than can run here, with a warning, since threads that
    wait for each other turn by turn are slower by far than fewer. Who asks for more now is told so, and gets them.
    """
    if asked is None and recorded is None:
        return physical_cores()
    most, count = most_threads(), asked or recorded or 1
    if count <= most:
        return count
    if asked is not None:
        log.warning("%d threads share %d processors, which is slower than %d threads", count, most, most)
        return count
    log.warning(
        "the engine was built for %d threads and %d can run here: opened with %d (--threads says otherwise)",
        *(count, most, most),
    )
    return most


def core_of(cpu: int, devices: Path) -> str:
    """A text that is the same for all hardware threads of one core."""
    siblings = devices / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        return siblings.read_text().strip()
    except OSError:
        return str(cpu)


def cgroup_cpu_quota(root: Path = CGROUP_ROOT, membership: Path = PROCESS_CGROUPS) -> float | None:
    """CPUs' worth of time that this process's control groups (version 2 or 1) allow, or None without a limit."""
    quotas = []
    for directory in cgroup_directories("cpu", root, membership):
        unified = read_words(directory / "cpu.max")
        if len(unified) == 2 and unified[0] != "max":
            quotas.append(int(unified[0]) / int(unified[1]))
        quota, period = read_words(directory / "cpu.cfs_quota_us"), read_words(directory / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            quotas.append(int(quota[0]) / int(period[0]))
    return min(quotas, default=None)


def cgroup_directories(controller: str, root: Path, membership: Path) -> list[Path]:
    """Directories of this process's groups for ``controller``, from its own up to the root."""
    found: list[Path] = []
    for line in read_lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = base / path.lstrip("/")
        found += [directory for directory in (group, *group.parents) if directory.is_relative_to(base)]
    return found


def read_words(path: Path) -> list[str]:
    """The words of a small file; none where it cannot be read."""
    return " ".join(read_lines(path)).split()


def read_lines(path: Path) -> list[str]:
    """The lines of a small file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
