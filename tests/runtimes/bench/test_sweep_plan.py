"""Who is asked to run which points of a sweep; workers answer at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.latency import run_benchmark
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.results import BenchReport, Subject
from llmc.runtimes.bench.sweep_plan import SweepPlan, context_case, curve_case, no_room
from llmc.runtimes.bench.workers.remote import LLMC_WORKER
from llmc.runtimes.machine.bandwidth import Bandwidth

from .office import ONE, A, B, Clerk, Office

INFO = {"weight_bytes": 1000, "cache_bytes_per_token": 10, "details": {"device": "cpu"}}


def measure(bandwidth: Bandwidth, plan: SweepPlan, runs: int = 2) -> tuple[BenchReport, list[tuple[str, int, int]]]:
    announced: list[tuple[str, int, int]] = []
    report = run_benchmark(
        *([A, B], [ONE], BenchOptions(runs=runs, load_window_s=0.01, measure_memory=False, generate=1)),
        bandwidth=bandwidth,
        progress=lambda *step: announced.append(step),
        studies=[plan],
    )
    return report, announced


def test_a_curve_runs_rows_at_a_time(office: Office, bandwidth: Bandwidth) -> None:
    report, announced = measure(bandwidth, SweepPlan.curve([4, 1]))
    assert report.curve is not None
    assert report.contexts is None
    assert [(point.tokens, point.label) for point in report.curve.points] == [(1, "a"), (1, "b"), (4, "a"), (4, "b")]
    asked = [fields for _, label, command, fields in office.asked if command == "run" and label == "a"]
    assert [fields["batch"] for fields in asked[3:]] == [1, 4] * 3, "a warm-up and two rounds"
    assert {(fields["prompt"], fields["gen"]) for fields in asked[3:]} == {(32, 17)}
    point = report.curve.points[2]
    assert (point.step_ms.median, point.tokens_per_s.median, point.bytes) == (500.0, 8.0, 1000)
    assert point.samples_s == ((0.5,) * 16,) * 2
    assert [number for _, number, _ in announced] == list(range(1, announced[0][2] + 1))


def test_no_request_and_no_process_for_memory_alone(office: Office, bandwidth: Bandwidth) -> None:
    before = 2 * len([A, B])  # of the rounds: one request each, twice
    measure(bandwidth, SweepPlan.curve([1]))
    assert [command for _, _, command, _ in office.asked].count("generate") <= before
    assert "memory" not in [command for _, _, command, _ in office.asked]


def test_texts_are_no_steps_of_a_sweep() -> None:
    llmc, plan = Subject("llmc", Path("engine"), LLMC_WORKER), SweepPlan.curve([1, 2])
    counts = {plan.count_steps([llmc], BenchOptions(runs=3, mode=mode, prompts="f")) for mode in ("tokens", "text")}
    assert counts == {2 * (3 + 1)}


def test_a_point_that_a_peer_refuses_is_named(
    office: Office, monkeypatch: pytest.MonkeyPatch, bandwidth: Bandwidth
) -> None:
    usual = Clerk.run

    def refusing(self: Clerk, batch: int, **fields: Any) -> dict[str, Any]:
        if self.label == "b" and batch == 4:
            raise EngineError("b: three rows at most")
        return usual(self, **fields)

    monkeypatch.setattr(Clerk, "run", refusing)
    report, _ = measure(bandwidth, SweepPlan.curve([1, 4]))
    assert report.curve is not None
    assert [(point.tokens, point.label) for point in report.curve.points] == [(1, "a"), (1, "b"), (4, "a")]
    assert report.curve.remarks[0] == "b is left out at 4: three rows at most"


def test_who_has_no_room_is_named(office: Office, bandwidth: Bandwidth) -> None:
    office.said["a", "open"] = {"info": {**INFO, "max_context": 1024, "max_batch": None}}
    office.said["b", "open"] = {"info": {**INFO, "max_context": 200, "max_batch": None}}
    report, _ = measure(bandwidth, SweepPlan.contexts([8192, 200, 1024]), runs=1)
    assert report.contexts is not None
    assert report.curve is None
    assert [(point.tokens, point.label) for point in report.contexts.points] == [(200, "a"), (200, "b"), (1024, "a")]
    assert report.contexts.remarks == (
        "b is left out at 1024: its context is 200 tokens",
        "a is left out at 8192: its context is 1024 tokens",
        "b is left out at 8192: its context is 200 tokens",
    )
    # A step behind 1,024 tokens reads the weights and the cache at its mean depth.
    assert report.contexts.points[2].bytes == 1000 + 10 * (1008 + 17 / 2)


def test_a_cliff_is_a_remark_of_the_curve_alone(
    office: Office, bandwidth: Bandwidth, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmc.runtimes.bench import sweep_plan

    monkeypatch.setattr(sweep_plan, "slow_steps", lambda points: [f"{len(points)} points"])
    curve, _ = measure(bandwidth, SweepPlan.curve([1, 2]), runs=1)
    contexts, _ = measure(bandwidth, SweepPlan.contexts([32, 64]), runs=1)
    assert curve.curve is not None
    assert contexts.contexts is not None
    assert (curve.curve.remarks, contexts.contexts.remarks) == (("4 points",), ())


def test_the_last_step_has_the_context_in_its_cache() -> None:
    case = context_case(1024)
    assert case.prompt + case.gen - 1 == 1024
    assert context_case(17).prompt == 1
    with pytest.raises(UsageError, match="give more than 16"):
        context_case(16)


def test_room_is_rows_and_tokens() -> None:
    assert no_room({}, curve_case(32)) == no_room({"max_context": 48, "max_batch": 32}, curve_case(32)) == ""
    assert no_room({"max_context": 47}, curve_case(1)) == "its context is 47 tokens"
    assert no_room({"max_batch": 31}, curve_case(32)) == "it was built for 31 rows"
