"""What a benchmark measures around its rounds, and how the report is put together; workers answer at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench import latency
from llmc.runtimes.bench.ceilings import Ceilings, DeviceCeilings
from llmc.runtimes.bench.latency import llmc_subject, make_cases, run_benchmark
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchCase, GpuLoads, OtherLoad
from llmc.runtimes.machine.arithmetic import Rate
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.gpu import EnergyCurve, GpuLoad
from llmc.runtimes.machine.powercap import EnergyFacts
from llmc.runtimes.machine.summary import Summary

from .office import ONE, TWO, A, B, Office, Watcher, on_cuda
from .reports import MACHINE

MATMUL = Rate(Summary(7e14, 6e14, 8e14, 7), 0, "torch")
COPIES = CopyBandwidth(Summary(2e12, 1e12, 3e12, 7), 1 << 30, 50 << 20)
BEFORE, AFTER = GpuLoad(0.0, 1, 0), GpuLoad(0.5, 2, 0)


@pytest.fixture
def bench(office: Office, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a benchmark measures of the machine, made up: loads of 0.5 before and 0.25 after."""
    made = SimpleNamespace(windows=[], threads=[], copied=0, gpu=None, watcher=Watcher(office))
    loads, gpu_loads = iter([0.5, 0.25]), iter([BEFORE, AFTER])

    def other_load(window: float = 1.0) -> float:
        made.windows.append(window)
        return next(loads)

    def ceilings(threads: int) -> Ceilings:
        made.threads.append(threads)
        slow, fast = (Bandwidth(Summary(rate, 9e3, 11e3, 5), threads, 1 << 30, 1 << 20) for rate in (9e3, 10e3))
        return Ceilings((slow, fast))

    def copies() -> CopyBandwidth:
        made.copied += 1
        return COPIES

    monkeypatch.setattr(latency, "other_load", other_load)
    monkeypatch.setattr(latency, "measure_ceilings", ceilings)
    monkeypatch.setattr(latency, "machine_fingerprint", lambda: MACHINE)
    monkeypatch.setattr(latency, "copy_bandwidth_of_device", copies)
    monkeypatch.setattr(latency, "matmul_rate_of_device", lambda: MATMUL)
    monkeypatch.setattr(latency, "open_gpu", lambda: made.gpu)
    monkeypatch.setattr(latency, "GpuSampler", lambda gpu: made.watcher)
    monkeypatch.setattr(latency, "open_powercap", lambda: ((), EnergyFacts((), "there is none")))
    made.with_gpu = lambda: setattr(made, "gpu", SimpleNamespace(load=lambda: next(gpu_loads)))
    return made


def test_loads_before_and_after(bench: SimpleNamespace) -> None:
    report = run_benchmark([A], [ONE], BenchOptions(runs=1, load_window_s=0.125))
    assert report.other_load == OtherLoad(0.5, 0.25)
    assert bench.windows == [0.125, 0.125]
    before, after = (text for text in report.warnings if "of the cores before" in text or "cores after" in text)
    assert "50% of the cores before" in before
    assert "25% of the cores after" in after


@pytest.mark.parametrize(("threads", "read"), [(None, 6), (3, 3)])
def test_the_bandwidth_is_that_of_the_threads(bench: SimpleNamespace, threads: int | None, read: int) -> None:
    report = run_benchmark([A], [ONE], BenchOptions(runs=1, threads=threads))
    assert bench.threads == [read]
    assert (report.machine, report.bandwidth.threads) == (MACHINE, read)
    assert report.results[0].bandwidth_share == pytest.approx(1000 / 0.5 / 10e3)


def test_a_bandwidth_that_was_measured_before_is_taken(bench: SimpleNamespace, bandwidth: Bandwidth) -> None:
    assert run_benchmark([A], [ONE], BenchOptions(runs=1), bandwidth=bandwidth).bandwidth is bandwidth
    assert bench.threads == []


def test_what_runs_on_the_cpu_shows_nothing_of_the_gpu(bench: SimpleNamespace) -> None:
    bench.with_gpu()
    bench.watcher.energy = EnergyCurve([1.0], [1.0])
    report = run_benchmark([A], [ONE], BenchOptions(runs=1))
    assert (report.copy_bandwidth, report.gpu_load, bench.copied) == (None, None, 0)
    assert report.ceilings is not None
    assert report.ceilings.device is None
    assert not any("GPU" in warning for warning in report.warnings)
    assert any("less than the last-level cache" in warning for warning in report.warnings)


def test_what_runs_on_the_gpu_has_its_ceiling_and_its_warnings(bench: SimpleNamespace, office: Office) -> None:
    bench.with_gpu()
    on_cuda(office, "a")
    office.said["b", "open"] = {"info": {"weight_bytes": 1 << 30, "cache_bytes_per_token": 0, "details": {}}}
    bench.watcher.energy = EnergyCurve([1.0], [1.0])
    report = run_benchmark([A, B], [ONE], BenchOptions(runs=1))
    assert (report.copy_bandwidth, report.gpu_load, bench.copied) == (COPIES, GpuLoads(BEFORE, AFTER), 1)
    assert report.ceilings is not None
    assert report.ceilings.device == DeviceCeilings(COPIES, MATMUL)
    on_gpu, on_cpu = report.results
    assert on_gpu.bandwidth_share == pytest.approx(1000 / 0.5 / 2e12)
    assert on_cpu.bandwidth_share == pytest.approx((1 << 30) / 0.5 / 10e3)
    assert [warning for warning in report.warnings if "GPU" in warning] == [
        "the GPU was 50% busy after the benchmark: another process uses it",
        "some decode parts were too short for the GPU's energy counter: use a larger --gen",
    ]
    assert not any("less than the last-level cache" in warning for warning in report.warnings)


def test_energy_is_not_missed_where_none_was_read_at_all(bench: SimpleNamespace, office: Office) -> None:
    bench.with_gpu()
    on_cuda(office, "a")
    report = run_benchmark([A], [ONE], BenchOptions(runs=1))
    assert not any("energy" in warning for warning in report.warnings)


def test_every_other_subject_is_compared_with_the_first(bench: SimpleNamespace) -> None:
    third = replace(A, label="c")
    announced: list[tuple[str, int, int]] = []
    report = run_benchmark(
        [A, B, third], [ONE, TWO], BenchOptions(runs=2), progress=lambda *step: announced.append(step)
    )
    pairs = [(item.numerator, item.denominator, item.case) for item in report.comparisons if item.metric == "decode"]
    assert pairs == [("a", "b", ONE), ("a", "c", ONE), ("a", "b", TWO), ("a", "c", TWO)]
    assert [subject.label for subject in report.subjects] == ["a", "b", "c"]
    assert announced[0][0] == "ceilings of the machine"
    assert [number for _, number, _ in announced] == list(range(1, announced[0][2] + 1))


def test_labels_differ_among_all(bench: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two subjects have the same name among a, b, a"):
        run_benchmark([A, B, replace(B, label="a")], [ONE])
    with pytest.raises(UsageError, match="one case"):
        run_benchmark([A], [])
    assert llmc_subject(tmp_path).label == tmp_path.name
    assert llmc_subject(tmp_path, "mine").label == "mine"


def test_cases_by_batch_then_by_prompt() -> None:
    assert make_cases([8, 4, 8], 3, [2, 1]) == tuple(
        BenchCase(prompt, 3, batch) for batch in (2, 1) for prompt in (8, 4)
    )


def test_the_processors_energy_or_why_there_is_none(
    bench: SimpleNamespace, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_benchmark([A], [ONE], BenchOptions(runs=1))
    assert report.energy == EnergyFacts((), "there is none")
    assert report.results[0].joules_per_token is None
    watcher, facts, given = Watcher(office), EnergyFacts(("package-0",)), []
    watcher.energy = EnergyCurve([4.0, 5.0, 6.0, 8.0], [0.0, 1.0, 3.0, 5.0])
    monkeypatch.setattr(latency, "open_powercap", lambda: (("zone",), facts))
    monkeypatch.setattr(latency, "PowercapSampler", lambda zones: given.append(zones) or watcher)
    office.said["a", "run"] = {"decode_window": [5, 7]}
    monkeypatch.setattr(latency, "other_load", lambda window: 0.0)
    report = run_benchmark([A], [ONE], BenchOptions(runs=1))
    assert (report.energy, given) == (facts, [("zone",)])
    assert report.results[0].joules_per_token == Summary(1.5, 1.5, 1.5, 1)
    assert report.results[0].power_w == Summary(1.5, 1.5, 1.5, 1)


def test_plans_extend_the_report_in_turn_and_their_steps_are_announced(bench: SimpleNamespace) -> None:
    announced: list[tuple[str, int, int]] = []

    class Plan:
        def __init__(self, word: str) -> None:
            self.word = word

        def count_steps(self, subjects: object, options: BenchOptions) -> int:
            return 2

        def extended(self, report: Any, subjects: Any, steps: Any) -> Any:
            for _ in range(2):
                steps.begin(self.word)
            return replace(report, warnings=(*report.warnings, f"{self.word} {subjects[0].label}"))

    report = run_benchmark(
        *([A], [ONE], BenchOptions(runs=1)),
        progress=lambda *step: announced.append(step),
        studies=[Plan("first"), Plan("second")],
    )
    assert report.warnings[-2:] == ("first a", "second a")
    assert [word for word, _, _ in announced[-4:]] == ["first", "first", "second", "second"]
    assert [number for _, number, _ in announced] == list(range(1, announced[0][2] + 1))
