"""Energy of the processor, by the counters that it keeps itself (RAPL), as Linux shows them under ``powercap``.

In: ``/sys/class/powercap``. Out: :func:`open_powercap`, and :class:`PowercapSampler`, which reads while workers run.

    intel-rapl:0      package-0      cores, caches, what stands on the same die
    intel-rapl:0:0    core           part of the package: not counted again
    intel-rapl:0:2    dram           beside the package: counted
    intel-rapl:1      psys           the whole platform, packages too: not counted

AMD's processors appear under the same names, without ``dram``. A counter wraps at ``max_energy_range_uj``, after
minutes under load. Since 2020 only root may read them (CVE-2020-8694), and a virtual machine has none. The energy is
the whole package's: idle power, and what other processes draw.

Source: Documentation/power/powercap/powercap.rst of the Linux kernel.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmc.runtimes.machine.gpu import EnergyCurve

ROOT = Path("/sys/class/powercap")
SAMPLE_S = 0.05
TAIL_S = 0.12
"""A window's end needs a reading behind it."""


@dataclass(frozen=True)
class EnergyFacts:
    """Where the processor's energy was read.

    Attributes:
        zones: Names of the counters; empty: none was read.
        reason: Why none was; empty where there are some.
    """

    zones: tuple[str, ...]
    reason: str = ""


@dataclass
class Zone:
    """One counter, and how far it has come since it was opened.

    Attributes:
        name: As ``package-0`` or ``dram``.
        counter: Its file.
        range_uj: Microjoules after which it begins again.
    """

    name: str
    counter: Path
    range_uj: int
    _last: int = field(default=0, init=False)
    _total: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._last = self._read()

    def microjoules(self) -> int:
        """Since it was opened; it must be read at least once a turn.

        Raises:
            OSError, ValueError: it cannot be read any more.
        """
        now = self._read()
        self._total += now - self._last if now >= self._last else now - self._last + self.range_uj
        self._last = now
        return self._total

    def _read(self) -> int:
        return int(self.counter.read_text())


def open_powercap(root: Path = ROOT) -> tuple[tuple[Zone, ...], EnergyFacts]:
    """The counters of packages and of memory beside them; none, and why, where they cannot be read."""
    found = {path: _name(path) for path in sorted(root.glob("*:*"))}
    wanted = {path: name for path, name in found.items() if name.startswith("package") or name == "dram"}
    if not wanted:
        reason = "the kernel shows no energy counter of the processor; a virtual machine has none"
        return (), EnergyFacts((), reason)
    try:
        zones = tuple(_zone(path, name) for path, name in wanted.items())
    except PermissionError as error:
        return (), EnergyFacts((), f"only root may read {error.filename}; run as root, or allow it: chmod a+r")
    except (OSError, ValueError) as error:
        return (), EnergyFacts((), f"the processor's energy counters cannot be read: {error}")
    return zones, EnergyFacts(tuple(zone.name for zone in zones))


def _name(path: Path) -> str:
    try:
        return (path / "name").read_text().strip()
    except OSError:
        return ""


def _zone(path: Path, name: str) -> Zone:
    return Zone(name, path / "energy_uj", int((path / "max_energy_range_uj").read_text()))


class PowercapSampler:
    """Reads counters in a thread inside ``with sampler.watching():``.

    Attributes:
        energy: Joules of all zones together over wall-clock time.
    """

    def __init__(self, zones: Sequence[Zone], *, period_s: float = SAMPLE_S, tail_s: float = TAIL_S) -> None:
        self.energy = EnergyCurve()
        self._zones, self._period_s, self._tail_s = tuple(zones), period_s, tail_s

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Sample until the block ends; a counter that is lost on the way ends the curve there."""
        stop = threading.Event()
        thread = threading.Thread(target=self._loop, args=(stop,), name="powercap-sampler", daemon=True)
        thread.start()
        try:
            yield
            time.sleep(self._tail_s)
        finally:
            stop.set()
            thread.join()

    def _loop(self, stop: threading.Event) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                moment = time.time()
                joules = sum(zone.microjoules() for zone in self._zones) / 1e6
                self.energy.add_total(moment, joules)
                if stop.wait(self._period_s):
                    return
