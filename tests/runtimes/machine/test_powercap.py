"""Counters of a made-up /sys: which are counted, that they wrap, why there are none; a sampler's curve of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from llmc.runtimes.machine.powercap import EnergyFacts, PowercapSampler, Zone, open_powercap


def zone(root: Path, folder: str, name: str, microjoules: int, limit: int = 1_000_000) -> Path:
    """A counter's folder; returns the file that counts."""
    (root / folder).mkdir(parents=True)
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{limit}\n")
    (root / folder / "energy_uj").write_text(f"{microjoules}\n")
    return root / folder / "energy_uj"


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    """Two packages, memory beside one of them, and what must not be counted twice."""
    zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:0:2", "dram", 5)
    zone(tmp_path, "intel-rapl:1", "package-1", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 3)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def test_packages_and_memory_are_counted_once(sockets: Path) -> None:
    zones, facts = open_powercap(sockets)
    assert facts == EnergyFacts(("package-0", "dram", "package-1"))
    assert [each.range_uj for each in zones] == [1_000_000] * 3
    assert [each.microjoules() for each in zones] == [0, 0, 0]


def test_a_counter_begins_again_at_its_range(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    each = Zone("package-0", counter, 1_000_000)
    for shown, total in [(950_000, 50_000), (100_000, 200_000), (100_000, 200_000), (99_999, 1_199_999)]:
        counter.write_text(f"{shown}\n")
        assert each.microjoules() == total


def test_why_there_is_none(tmp_path: Path) -> None:
    zones, facts = open_powercap(tmp_path / "missing")
    assert (zones, facts.zones) == ((), ())
    assert "no energy counter" in facts.reason
    zone(tmp_path, "intel-rapl:0", "psys", 1)
    assert "no energy counter" in open_powercap(tmp_path)[1].reason


def test_a_counter_that_only_root_may_read(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.read_text

    def refused(path: Path, *given: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *given)

    monkeypatch.setattr(Path, "read_text", refused)
    zones, facts = open_powercap(sockets)
    assert zones == ()
    assert facts.reason.startswith("only root may read /")
    assert facts.reason.endswith("intel-rapl:0/energy_uj; run as root, or allow it: chmod a+r")


def test_a_counter_that_says_no_number(sockets: Path) -> None:
    (sockets / "intel-rapl:1" / "energy_uj").write_text("none")
    zones, facts = open_powercap(sockets)
    assert zones == ()
    assert "cannot be read" in facts.reason


def _spend(counter: Path, joules: float, seconds: float) -> None:
    """Let a counter run, a tenth of it at a time."""
    for _ in range(10):
        counter.with_suffix(".next").write_text(str(int(counter.read_text()) + int(joules * 1e5)))
        counter.with_suffix(".next").replace(counter)
        time.sleep(seconds / 10)


def test_a_sampler_sees_what_is_spent_between_two_moments(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0, 10**9)
    zones, _ = open_powercap(tmp_path)
    sampler = PowercapSampler(zones, period_s=0.002, tail_s=0.05)
    with sampler.watching():
        _spend(counter, 1.0, 0.1)
        begin = time.time()
        _spend(counter, 5.0, 0.2)
        end = time.time()
        _spend(counter, 1.0, 0.1)
    assert sampler.energy.joules[-1] == pytest.approx(7.0)
    assert sampler.energy.between(begin, end) == pytest.approx(5.0, abs=0.8)
    assert not any(thread.name == "powercap-sampler" for thread in threading.enumerate())


def test_a_counter_that_is_lost_ends_the_curve(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    zones, _ = open_powercap(tmp_path)
    counter.unlink()
    sampler = PowercapSampler(zones, period_s=0.002, tail_s=0.01)
    with sampler.watching():
        pass
    assert sampler.energy.times == []
