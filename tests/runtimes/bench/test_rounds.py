"""Both orders of a benchmark, and what is measured of a GPU, with workers that only answer."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench import latency, rounds
from llmc.runtimes.bench.analysis import Sample, gpu_warnings, with_energy
from llmc.runtimes.bench.latency import make_cases, run_benchmark
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.report import render_report
from llmc.runtimes.bench.results import BenchCase, Subject
from llmc.runtimes.bench.rounds import Visit, plan_visits
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.gpu import EnergyCurve, Gpu, GpuLoad, GpuSampler
from llmc.runtimes.machine.summary import Summary

A, B, C = (Subject(name, Path(name), ()) for name in "abc")
COPIES = CopyBandwidth(Summary(2e12, 1e12, 3e12, 7), 1 << 30, 50 << 20)
ALONE = {"load_window_s": 0, "load_warning": 9.0}
"""What other processes do on the tester's machine plays no part."""
INFO = {"weight_bytes": 1_000_000_000, "cache_bytes_per_token": 0}


class Desk:
    """Makes workers; remembers who was asked what, and who was open."""

    def __init__(self, nvml=None, device="cuda", millijoules=0, device_bytes=None):
        self.nvml, self.device, self.millijoules, self.device_bytes = nvml, device, millijoules, device_bytes
        self.asked, self.open, self.most_open, self.pid = [], 0, 0, 100

    def __call__(self, label, command):
        return Worker(self, label)


class Worker:
    def __init__(self, desk, label):
        self.desk, self.label = desk, label
        desk.pid += 1
        self.pid = desk.pid

    def __enter__(self):
        self.desk.open += 1
        self.desk.most_open = max(self.desk.open, self.desk.most_open)
        return self

    def __exit__(self, *error):
        self.desk.open -= 1

    def cpu_seconds(self):
        return 0.0

    def request(self, command, **fields):
        self.desk.asked.append((self.label, command, fields.get("seed")))
        return getattr(self, command)()

    def open(self):
        device = self.desk.device if self.label != "cpu" else "cpu"
        return {"load_s": 1.0, "base_rss_bytes": 1, "info": {**INFO, "details": {"device": device}}}

    def memory(self):
        nvml = self.desk.nvml
        if nvml is not None:
            nvml.processes = {self.pid: 7000}
            time.sleep(0.05)
            nvml.processes = {}
        extra = {} if self.desk.device_bytes is None else {"device_bytes": self.desk.device_bytes}
        return {"peak_rss_bytes": 5, "rss_bytes": 5, **extra}

    def run(self):
        """Decode for 60 ms, in which the counter moves by the joules set, 10 ms from either end."""
        begin = time.time()
        steps = 6
        for _ in range(steps):
            time.sleep(0.01)
            if self.desk.nvml is not None and self.desk.millijoules:
                self.desk.nvml.millijoules += self.desk.millijoules // steps
        return {"first_token_s": 0.5, "step_s": [0.001, 0.001], "decode_window": [begin, time.time()]}


@pytest.fixture
def on_gpu(monkeypatch, nvml):
    """``on_gpu(desk)``: the benchmark sees a GPU, and workers come from the desk."""

    def prepare(desk):
        monkeypatch.setattr(rounds, "WorkerProcess", desk)
        monkeypatch.setattr(latency, "open_gpu", lambda: Gpu(nvml, "handle"))
        monkeypatch.setattr(latency, "GpuSampler", lambda gpu: GpuSampler(gpu, period_s=0.002, tail_s=0.03))
        monkeypatch.setattr(latency, "copy_bandwidth_of_device", lambda: COPIES)
        return desk

    return prepare


def rendered(report):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_report(report))
    return console.export_text()


def test_visits_reverse_and_join():
    assert plan_visits([A, B, C], 5) == [
        Visit(A, (0, 1, 2)),
        Visit(B, (0, 1, 2)),
        Visit(C, (0, 1, 2, 3, 4)),
        Visit(B, (3, 4)),
        Visit(A, (3, 4)),
    ]
    assert plan_visits([A, B], 1) == [Visit(A, (0,)), Visit(B, (0,))]
    assert plan_visits([A], 4) == [Visit(A, (0, 1, 2, 3))]


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_steps_are_announced_and_every_round_is_run_once(monkeypatch, bandwidth, one_at_a_time):
    desk = Desk(device="cpu")
    monkeypatch.setattr(rounds, "WorkerProcess", desk)
    announced = []
    options = BenchOptions(runs=3, **ALONE, seed=40, one_at_a_time=one_at_a_time)
    report = run_benchmark(
        [A, B],
        make_cases([4], 3, [1, 2]),
        options,
        bandwidth=bandwidth,
        progress=lambda what, *count: announced.append(count),
    )
    assert announced == [(number, announced[0][1]) for number in range(1, announced[0][1] + 1)]
    assert all(result.ttft_s.count == 3 for result in report.results)
    assert all(result.peak_rss_bytes == 5 for result in report.results)
    assert desk.most_open == (1 if one_at_a_time else 2)


def test_one_at_a_time_runs_the_rounds_in_their_order(monkeypatch, bandwidth):
    desk = Desk(device="cpu")
    monkeypatch.setattr(rounds, "WorkerProcess", desk)
    options = BenchOptions(runs=4, **ALONE, seed=40, one_at_a_time=True)
    report = run_benchmark([A, B], make_cases([4], 3), options, bandwidth=bandwidth)
    told = [(label, seed if command == "run" else command) for label, command, seed in desk.asked]
    first = ["open", 40, "memory", 40, 41]
    assert told == [
        *(("a", what) for what in first),
        *(("b", what) for what in [*first, 42, 43]),
        *(("a", what) for what in ["open", 40, 42, 43]),
    ]
    assert report.subjects[0].load_s.count == 2
    assert report.subjects[1].load_s.count == 1


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_figures_of_a_gpu(on_gpu, nvml, bandwidth, one_at_a_time):
    desk = on_gpu(Desk(nvml, millijoules=6000))
    nvml.utilization = 3
    options = BenchOptions(runs=2, **ALONE, one_at_a_time=one_at_a_time)
    cpu = Subject("cpu", Path("cpu"), ())
    report = run_benchmark([A, cpu], make_cases([4], 3, [2]), options, bandwidth=bandwidth)
    gpu, other = report.results
    assert gpu.device_peak_bytes == 7000
    # 6 J for 2 steps of 2 rows, up to 1 J lost at either end, in at least 60 ms.
    assert 0.99 <= gpu.joules_per_token.median <= 1.51
    assert 10 < gpu.power_w.median < 101
    assert gpu.bandwidth_share == pytest.approx(1e9 / 0.001 / 2e12)
    assert (other.device_peak_bytes, other.bandwidth_share) == (None, pytest.approx(1e9 / 0.001 / 10e9))
    assert desk.open == 0
    assert report.warnings == ()
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["copy_bandwidth"]["bytes_per_second"]["median"] == 2e12
    assert plain["gpu_load"]["before"] == {"utilization": 0.03, "used_bytes": 1000, "processes": 0}
    text = rendered(report)
    for words in ("GPU memory", "J/token", "copy bandwidth of the GPU (read and written): 2000 GB/s"):
        assert words in text


def test_without_nvml_a_gpu_has_the_figures_that_its_worker_knows(on_gpu, monkeypatch, bandwidth):
    on_gpu(Desk(device_bytes=9000))
    monkeypatch.setattr(latency, "open_gpu", lambda: None)
    report = run_benchmark([A], make_cases([4], 3), BenchOptions(runs=1, **ALONE), bandwidth=bandwidth)
    (result,) = report.results
    assert (result.device_peak_bytes, result.joules_per_token, result.power_w) == (9000, None, None)
    assert result.bandwidth_share == pytest.approx(1e9 / 0.001 / 2e12)
    assert report.gpu_load is None
    assert report.warnings == ()


def test_cpu_subjects_show_nothing_of_a_gpu(on_gpu, nvml, bandwidth):
    on_gpu(Desk(device="cpu"))
    nvml.processes = {1: 5}
    report = run_benchmark([A], make_cases([4], 3), BenchOptions(runs=1, **ALONE), bandwidth=bandwidth)
    assert report.copy_bandwidth is None
    assert report.gpu_load is None
    assert report.warnings == ()
    assert "GPU" not in rendered(report)


def test_the_energy_seen_from_outside_comes_first():
    curve = EnergyCurve([1.0, 2.0, 3.0, 4.0], [0.0, 10.0, 20.0, 30.0])
    case = BenchCase(4, 3)
    inside = Sample(0.1, (1.0, 1.0), 0.0, (1.5, 3.5), energy_j=99.0)
    outside = Sample(0.1, (1.0, 1.0), 0.0, (8.0, 9.0), energy_j=99.0)
    silent = Sample(0.1, (1.0, 1.0), 0.0)
    found = with_energy({("a", case): [inside, outside, silent]}, curve)["a", case]
    assert [sample.energy_j for sample in found] == [20.0, 99.0, None]
    assert [sample.decode_s for sample in found] == [2.0, 1.0, 2.0]


def test_warnings_of_a_gpu(on_gpu, nvml, bandwidth):
    busy, shared, idle = GpuLoad(0.5, 1, 0), GpuLoad(None, None, 2), GpuLoad(0.01, 1, 0)
    options = BenchOptions()
    before, after = gpu_warnings(options, [], (shared, busy), counts=False)
    assert before.startswith("2 other processes had the GPU open before")
    assert after.startswith("the GPU was 50% busy after")
    assert gpu_warnings(options, [], (idle, idle), counts=True) == ()
    on_gpu(Desk(nvml))  # the counter does not move while it decodes
    report = run_benchmark([A], make_cases([4], 3), BenchOptions(runs=1, **ALONE), bandwidth=bandwidth)
    assert report.warnings == ("some decode parts were too short for the GPU's energy counter: use a larger --gen",)


def test_a_refused_case_is_named_and_the_others_are_compared(monkeypatch, bandwidth):
    def asked(worker, command, **fields):
        if worker.label == "b" and command == "run" and fields["batch"] == 2:
            raise EngineError("b: run failed, RuntimeError: one row at a time")
        return getattr(worker, command)()

    monkeypatch.setattr(Worker, "request", asked)
    monkeypatch.setattr(rounds, "WorkerProcess", Desk(device="cpu"))
    report = run_benchmark([A, B], make_cases([4], 3, [1, 2]), BenchOptions(runs=2, **ALONE), bandwidth=bandwidth)
    assert [(it.label, it.case.batch) for it in report.results] == [("a", 1), ("b", 1), ("a", 2)]
    assert {it.case.batch for it in report.comparisons} == {1}
    assert "b did not run pp4+tg3 x2: run failed, RuntimeError: one row at a time" in report.warnings
    assert "b did not run" in rendered(report)
