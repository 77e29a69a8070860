"""Starts until it is decided, with workers that only answer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.gate.figures import METRICS
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.gate.run import Gate, RecordedBaseline, figures_by_case, run_gate
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchCase, BenchReport, Subject
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.summary import Summary

from ..office import Office

MINE, BASE = Subject("mine", Path("mine"), ()), Subject("mine, baseline", Path("base"), ())
CASES = (BenchCase(4, 3), BenchCase(9, 5, 2))
QUICK = BenchOptions(runs=2, load_window_s=0, load_warning=9.0)
BANDWIDTH = Bandwidth(Summary(10e9, 9e9, 11e9, 5), threads=1, buffer_bytes=1 << 30, cache_bytes=1 << 20)
SLOWER = ("decode_tps < 0.97*baseline",)


def gate(
    options: GateOptions, baseline: Subject | RecordedBaseline | None = BASE, **changes: Any
) -> tuple[BenchReport, Any]:
    report = run_gate(MINE, baseline, CASES[:1], QUICK, options, bandwidth=BANDWIDTH, **changes)
    assert report.gate is not None
    return report, report.gate


def slow(office: Office, label: str, seconds: float) -> None:
    office.said[label, "run"] = {"step_s": [seconds, seconds]}


def test_a_slower_engine_fails_and_an_equal_one_passes_at_the_first_look(office: Office) -> None:
    _, record = gate(GateOptions(fail_if=SLOWER))
    assert (record.outcome, record.paired, record.baseline) == ("passed", True, "mine, baseline")
    first_look = record.starts
    slow(office, "mine", 0.55)
    _, record = gate(GateOptions(fail_if=SLOWER))
    assert (record.outcome, record.starts) == ("failed", first_look)
    assert record.conditions[0].comparisons[0].estimate == pytest.approx(0.5 / 0.55)


def test_every_start_is_two_new_processes_in_turn_first_one_way_then_the_other(office: Office) -> None:
    run_gate(MINE, BASE, CASES, QUICK, GateOptions(starts=2), bandwidth=BANDWIDTH)
    mine, base = "mine", "mine, baseline"
    both = [[mine, base], [base, mine]]
    expected = []
    for start, order in enumerate(both):
        number = {label: 2 * start + 1 + place for place, label in enumerate(order)}
        expected += [(number[label], label, "open", None, None) for label in order]
        expected += [(number[label], label, "run", case.prompt, 0) for label in order for case in CASES]
        for turn in (2 * start, 2 * start + 1):
            expected += [(number[label], label, "run", case.prompt, turn) for case in CASES for label in order]
        expected += [(number[label], label, "memory", None, None) for label in order]
    assert office.told("prompt", "seed") == expected
    assert not any(worker.is_open for worker in office.workers)


def test_one_at_a_time(office: Office) -> None:
    options = BenchOptions(runs=1, load_window_s=0, load_warning=9.0, one_at_a_time=True, measure_memory=False)
    report = run_gate(MINE, BASE, CASES[:1], options, GateOptions(starts=2), bandwidth=BANDWIDTH)
    said = [(number, command) for number, _, command, _ in office.asked]
    assert said == [(number, command) for number in (1, 2, 3, 4) for command in ("open", "run", "run")]
    assert [worker.label for worker in office.workers] == ["mine", "mine, baseline", "mine, baseline", "mine"]
    assert report.gate is not None
    assert all("peak_rss_bytes" not in record.figures for record in report.gate.measured)


def test_figures_of_a_start(office: Office) -> None:
    """The office's worker n takes n seconds to load and has 1000 + n bytes; a first token takes 1 + seed seconds."""
    _, record = gate(GateOptions(starts=2), None)
    first, second = record.measured
    assert (first.label, first.case, first.start, second.start) == ("mine", "pp4+tg3", 0, 1)
    assert first.figures == pytest.approx(
        {
            "decode_tokens_per_s": 2.0,
            "prefill_tokens_per_s": (4 / 1 + 4 / 2) / 2,
            "ttft_s": 1.5,
            "tpot_ms": 500.0,
            **{f"itl_ms.{percentile}": 500.0 for percentile in ("p50", "p90", "p95", "p99")},
            "load_s": 1.0,
            "peak_rss_bytes": 1001,
        }
    )
    assert set(METRICS) - set(first.figures) == {"joules_per_token"}
    assert (second.figures["ttft_s"], second.figures["load_s"]) == (3.5, 2.0)
    assert (record.outcome, record.conditions, record.baseline, record.paired) == ("passed", (), "", False)


def test_energy_is_a_figure_where_it_was_measured(office: Office) -> None:
    office.said["mine", "run"] = {"energy_j": 6.0}
    _, record = gate(GateOptions(starts=1), None)
    assert record.measured[0].figures["joules_per_token"] == 3.0


def test_a_recorded_baseline(office: Office) -> None:
    figures = [{"decode_tokens_per_s": 2.0 + 0.01 * start} for start in range(12)]
    recorded = RecordedBaseline("before.json", {"pp4+tg3": figures})
    slow(office, "mine", 0.6)
    _, record = gate(GateOptions(fail_if=SLOWER), recorded)
    assert (record.outcome, record.baseline, record.paired) == ("failed", "before.json", False)
    assert {start.label for start in record.measured} == {"mine"}


def noisy(office: Office) -> None:
    """Steps of the candidate that are 20 % longer in each second start."""

    class Said(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            start = (len(office.workers) - 1) // 2
            return {"step_s": [0.4 if start % 2 else 0.6] * 2} if key == ("mine", "run") else default

    office.said = Said()


def test_a_limit_of_starts(office: Office) -> None:
    noisy(office)
    _, record = gate(GateOptions(fail_if=SLOWER, starts=14))
    assert (record.outcome, record.starts, record.most_starts) == ("undecided", 14, 14)


def test_a_limit_of_time_is_one_more_look() -> None:
    ticks = itertools.count(0.0, 100.0)
    measuring = Gate(
        GateOptions(fail_if=SLOWER, time_limit=350),
        judge := Judged(),  # type: ignore[arg-type]
        "mine",
        clock=lambda: next(ticks),
    )
    measuring._start = lambda rounds: setattr(measuring, "starts", measuring.starts + 1)  # type: ignore[method-assign]
    measuring.measure(None)  # type: ignore[arg-type]
    assert (measuring.starts, measuring.seconds, judge.looked) == (4, 400.0, 1)


class Judged:
    """A judge who never knows, and plans no look."""

    looks = (60,)
    looked = 0

    def require(self, measured: object) -> None:
        pass

    def look(self, measured: object) -> str:
        self.looked += 1
        return "undecided"


def test_without_conditions_time_plays_no_part(office: Office) -> None:
    _, record = gate(GateOptions(starts=3, time_limit=1), None)
    assert record.starts == 3


def test_steps_are_announced(office: Office) -> None:
    steps: list[tuple[str, int, int]] = []
    run_gate(
        MINE,
        BASE,
        CASES,
        QUICK,
        GateOptions(starts=3),
        bandwidth=BANDWIDTH,
        progress=lambda *step: steps.append(step),
    )
    assert [number for _, number, _ in steps] == list(range(1, steps[0][2] + 1))
    assert steps[-1][0].endswith("run 2 of 2")


def test_what_was_not_measured_ends_it_after_one_start(office: Office) -> None:
    with pytest.raises(UsageError, match="joules_per_token of the engine was not measured"):
        gate(GateOptions(fail_if=("joules_per_token > 1",)))
    assert len(office.workers) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"baseline": "x"}, "--baseline is for --fail-if"),
        ({"fail_if": SLOWER, "baseline_anyway": True}, "--baseline-anyway is for --baseline"),
        ({"undecided": "perhaps"}, "--undecided perhaps is none of pass, fail"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        GateOptions(**options)


def test_what_is_asked_for() -> None:
    assert [GateOptions().asked, GateOptions(starts=3).asked, GateOptions(fail_if=SLOWER).asked] == [
        False,
        True,
        True,
    ]
    assert [GateOptions().most_starts, GateOptions(starts=3).most_starts] == [60, 3]


def test_figures_by_case(office: Office) -> None:
    report = run_gate(MINE, BASE, CASES, QUICK, GateOptions(starts=2), bandwidth=BANDWIDTH)
    assert report.gate is not None
    figures = figures_by_case(report.gate.measured, "mine")
    assert list(figures) == ["pp4+tg3", "pp9+tg5 x2"]
    assert [len(starts) for starts in figures.values()] == [2, 2]


@pytest.fixture(autouse=True)
def no_look_at_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.runtimes.bench import latency

    monkeypatch.setattr(latency, "other_load", lambda seconds: 0.0)
