from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.ceilings import Ceilings
from llmc.runtimes.bench.load import gate as gating
from llmc.runtimes.bench.load import run as running
from llmc.runtimes.bench.load.course import Course
from llmc.runtimes.bench.load.engine_loop import EngineLoop
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.run import run_load
from llmc.runtimes.bench.load.target import Traffic, Watch
from llmc.runtimes.bench.load.workload import Work, Workload
from llmc.runtimes.bench.results import SubjectRecord
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.summary import Summary
from llmc.runtimes.session.sampling_params import SamplingParams

from .test_engine_loop import Engine

BANDWIDTH = Bandwidth(Summary(10e9, 9e9, 11e9, 5), threads=1, buffer_bytes=1 << 30, cache_bytes=1 << 20)


class FakeTarget:
    """An engine with steps of a length, in a time of its own."""

    def __init__(self, label: str = "mine", step_s: float = 0.25, rows: int = 2) -> None:
        self.label, self.rows, self.joins, self._step_s = label, rows, True, step_s
        self.events: list[str] = []
        self.works: list[Work] = []
        self.interrupt_at = float("inf")
        self.late_s = 0.0

    def subject(self) -> SubjectRecord:
        return SubjectRecord(self.label, self.label, {}, None, None)

    def check(self) -> None:
        """It is there."""

    def open(self, options: LoadOptions, workload: Workload, works: Sequence[Work]) -> tuple[str, ...]:
        self.events.append("open")
        self.works = [*works]
        return (f"{self.label} is a fake",)

    def prepare(self, work: Work) -> list[int]:
        return [1] * 3

    def run(self, course: Course[Any], watch: Watch) -> Traffic:
        self.events.append("run")
        engine = Engine(self._step_s, self.rows)

        def interrupt() -> None:
            if engine.now > self.interrupt_at:
                raise KeyboardInterrupt

        engine.before = interrupt
        loop = EngineLoop(engine, SamplingParams(), frozenset(), 100.0, lambda: engine.now, engine.sleep)
        traffic = loop.run(course, watch)
        for exchange in traffic.exchanges:
            exchange.late_s += self.late_s
        return traffic

    def close(self) -> None:
        self.events.append("close")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine is measured."""
    for module in (running, gating):
        monkeypatch.setattr(module, "measure_ceilings", lambda threads: Ceilings((BANDWIDTH,)))
        monkeypatch.setattr(module, "other_load", lambda window_s: 0.3)


OPTIONS = {"duration": 10.0, "warm_up": 2.0, "output_len": "4"}


def test_a_sweep_over_users_says_what_the_engine_does() -> None:
    target = FakeTarget()
    report = run_load([target], LoadOptions(users=(1, 2, 4), **OPTIONS))
    assert target.events == ["open", "run", "run", "run", "close"]
    assert report.load is not None
    one, two, four = report.load.points
    assert [one.name, two.name, four.name] == ["1 user", "2 users", "4 users"]
    # Steps of a quarter of a second, two rows: 4 and 8 tokens a second; with four users each waits for one second.
    assert [round(it.output_tokens_per_s) for it in (one, two, four)] == [4, 8, 8]
    assert one.ttft_ms is not None
    assert four.ttft_ms is not None
    assert (one.ttft_ms.p50, one.window_s) == (250.0, (2.0, 12.0))
    assert four.ttft_ms.p50 >= 1000.0
    assert four.in_flight == pytest.approx(4.0, abs=0.05)
    assert {it.phase for it in report.load.requests} == {"warm-up", "measured", "cool-down"}
    assert report.load.complete
    assert report.conventions["clock"]
    assert "mine is a fake" in report.warnings
    assert any("30% of the cores" in warning for warning in report.warnings)


def test_a_rate_beyond_the_engine_is_an_overload() -> None:
    report = run_load([FakeTarget()], LoadOptions(rate=(0.5, 6.0), arrivals="constant", **OPTIONS))
    assert report.load is not None
    slow, fast = report.load.points
    assert slow.requests_per_s == pytest.approx(0.5, abs=0.11)
    assert fast.requests_per_s == pytest.approx(2.0, abs=0.21)
    assert [("more arrived" in it) for it in report.warnings if "requests/s:" in it and "too few" not in it] == [True]


def test_a_trace_is_played_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("".join(f'{{"arrival_s": {at}, "input_length": 5, "output_length": 2}}\n' for at in (0, 1, 2)))
    target = FakeTarget()
    report = run_load([target], LoadOptions(trace=str(file)))
    assert report.load is not None
    (point,) = report.load.points
    assert (point.name, point.requests, point.window_s) == ("trace", 3, (0.0, 2.5))
    assert report.load.trace is not None
    assert (report.load.trace.file, report.load.trace.count) == ("t.jsonl", 3)
    assert [work.output for work in target.works] == [2, 2, 2]


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("one\ntwo\n")
    target = FakeTarget()
    report = run_load([target], LoadOptions(users=(1,), prompts=str(file), **OPTIONS))
    assert report.prompts is not None
    assert report.prompts.count == 2
    assert [work.prompt for work in target.works] == ["one", "two"]


def test_an_engine_is_told_the_longest_request() -> None:
    target = FakeTarget()
    run_load([target], LoadOptions(users=(1,), input_len="5-9", duration=5.0, output_len="2-4"))
    assert [(sum(piece.length for piece in work.pieces), work.output) for work in target.works] == [(9, 4)]


def test_ctrl_c_keeps_what_was_measured_and_measures_nothing_more() -> None:
    first, second = FakeTarget("first"), FakeTarget("second")
    first.interrupt_at = 6.0
    report = run_load([first, second], LoadOptions(users=(1, 2), **OPTIONS))
    assert report.load is not None
    assert not report.load.complete
    (point,) = report.load.points
    assert not point.complete
    assert point.ok >= 3
    assert first.events == ["open", "run", "close"]
    assert second.events == []
    assert report.warnings[0].startswith("interrupted")


def test_nothing_in_the_window_is_an_error_and_the_engine_is_closed() -> None:
    target = FakeTarget()
    target.interrupt_at = 1.0
    with pytest.raises(UsageError, match="no request came into the window"):
        run_load([target], LoadOptions(users=(1,), **OPTIONS))
    assert target.events[-1] == "close"


def test_progress_goes_on_and_knows_its_end() -> None:
    class Told:
        def __init__(self) -> None:
            self.stages: list[tuple[str, int | None]] = []
            self.done: list[int] = []

        def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
            self.stages.append((stage, total))

        def advance(self, done: int) -> None:
            self.done.append(done)

    told = Told()
    run_load([FakeTarget()], LoadOptions(users=(1,), **OPTIONS), progress=told)
    assert told.stages == [("Ceilings of the machine", None), ("mine: a first answer", None), ("mine, 1 user", 12)]
    assert told.done == sorted(told.done)
    assert told.done[-1] >= 11
