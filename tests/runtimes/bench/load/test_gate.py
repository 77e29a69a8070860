from pathlib import Path

import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.document import write_report
from llmc.runtimes.bench.gate.options import GateOptions
from llmc.runtimes.bench.load.gate import LOAD_METRICS, load_figures, read_load_baseline, run_load_gate
from llmc.runtimes.bench.load.gate_options import LoadGateOptions
from llmc.runtimes.bench.load.options import LoadOptions

from .samples import exchange, failed, load_sample, point_of
from .test_run import FakeTarget, _quick  # noqa: F401  (nothing of the machine is measured)

OPTIONS = LoadOptions(users=(1,), duration=10.0, warm_up=2.0, output_len="4")


def test_figures_have_the_documents_names_and_are_above_zero() -> None:
    figures = load_figures(point_of(exchange(0.0, 1.0, 2.0), limits="ttft=1ms"))
    assert set(figures) == set(LOAD_METRICS)
    assert (figures["ttft_ms.p99"], figures["goodput_per_s"]) == (1000.0, 1e-9)
    none = load_figures(point_of(failed(0.0, "HTTP 500", 1.0)))
    assert none["ok_share"] == 1e-9
    assert "ttft_ms.p50" not in none
    assert "goodput_per_s" not in none


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        ("ttft_p99 > 200", "failed"),
        ("ttft_ms.p50 > 300", "passed"),
        ("output_tps < 4.5 and ok_share < 0.5", "passed"),
    ],
)
def test_conditions_are_decided_by_repeats(condition: str, outcome: str) -> None:
    target = FakeTarget()
    report = run_load_gate([target], None, OPTIONS, GateOptions((condition,), starts=20))
    assert report.gate is not None
    assert (report.gate.outcome, report.gate.unit, report.gate.baseline) == (outcome, "repeats", "")
    assert 7 <= report.gate.starts < 20
    assert target.events == ["open", "run", "close"] * report.gate.starts
    assert report.load is not None
    assert [point.repeat for point in report.load.points] == [*range(report.gate.starts)]


def test_a_slower_engine_fails_against_a_baseline_that_takes_turns() -> None:
    report = run_load_gate(
        [FakeTarget("new", 0.5)],
        FakeTarget("old"),
        OPTIONS,
        GateOptions(("tpot_p50 > 1.5*baseline",), "old", starts=20),
    )
    assert report.gate is not None
    assert (report.gate.outcome, report.gate.paired, report.gate.baseline) == ("failed", True, "old")
    assert [subject.label for subject in report.subjects] == ["new", "old"]


def test_a_recorded_baseline_is_compared_with(tmp_path: Path) -> None:
    earlier = run_load_gate([FakeTarget()], None, OPTIONS, GateOptions(starts=8))
    write_report(earlier, tmp_path / "old.json")
    baseline = read_load_baseline(tmp_path / "old.json", OPTIONS)
    options = GateOptions(("output_tps < 0.9*baseline",), "old.json", starts=30)
    report = run_load_gate([FakeTarget(step_s=0.5)], baseline, OPTIONS, options)
    assert report.gate is not None
    assert (report.gate.outcome, report.gate.paired, report.gate.baseline) == ("failed", False, "old.json")
    other = LoadOptions(users=(1,), duration=11.0, warm_up=2.0, output_len="4")
    with pytest.raises(UsageError, match="another one"):
        read_load_baseline(tmp_path / "old.json", other)
    assert read_load_baseline(tmp_path / "old.json", other, anyway=True).name == "old.json"
    with pytest.raises(UsageError, match="no figures of 2 users; it has 1 user"):
        read_load_baseline(tmp_path / "old.json", LoadOptions(users=(2,)))


def test_a_report_without_repeats_is_no_baseline(tmp_path: Path) -> None:
    write_report(load_sample(point_of(exchange(0.0, 1.0))), tmp_path / "a.json")
    with pytest.raises(UsageError, match="no repeats"):
        read_load_baseline(tmp_path / "a.json", OPTIONS)


def test_nothing_is_judged_where_the_generator_was_the_bottleneck() -> None:
    target = FakeTarget()
    target.late_s = 5.0
    with pytest.raises(EngineError, match="the generator was the bottleneck"):
        run_load_gate([target], None, OPTIONS, GateOptions(("ttft_p99 > 200",), starts=20))
    assert target.events[-1] == "close"


def test_ctrl_c_ends_a_gate_undecided() -> None:
    target = FakeTarget()
    target.interrupt_at = 6.0
    report = run_load_gate([target], None, OPTIONS, GateOptions(("ttft_p99 > 200",), starts=20))
    assert report.gate is not None
    assert report.load is not None
    assert (report.gate.outcome, report.gate.starts, report.load.complete) == ("undecided", 0, False)


def test_what_does_not_fit_together() -> None:
    with pytest.raises(UsageError, match="judge one engine, not 2"):
        run_load_gate([FakeTarget(), FakeTarget("b")], None, OPTIONS, GateOptions(("ttft_p99 > 1",)))
    with pytest.raises(UsageError, match="speaks of a baseline"):
        run_load_gate([FakeTarget()], None, OPTIONS, GateOptions(("ttft_p99 > baseline",)))
    with pytest.raises(UsageError, match="did you mean ttft_p99"):
        run_load_gate([FakeTarget()], None, OPTIONS, GateOptions(("ttft_p9 > 5",)))


def test_options_of_a_load_are_those_of_any_gate() -> None:
    options = LoadGateOptions(("ttft_p99 > 5",), repeats=9, undecided="fail")
    assert options.plain == GateOptions(("ttft_p99 > 5",), starts=9, undecided="fail")
    with pytest.raises(UsageError, match="--baseline is for --fail-if"):
        LoadGateOptions(baseline="x")
