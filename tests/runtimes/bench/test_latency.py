import json
from typing import ClassVar

import pytest
from rich.console import Console

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench import rounds
from llmc.runtimes.bench.analysis import Sample, compare, step_bytes, warnings_of
from llmc.runtimes.bench.document import write_report
from llmc.runtimes.bench.latency import llmc_subject, make_cases, run_benchmark
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.report import render_report, spread
from llmc.runtimes.bench.results import BenchCase
from llmc.runtimes.bench.workers.remote import WorkerProcess
from llmc.runtimes.machine.summary import Summary

QUICK = BenchOptions(runs=3, load_window_s=0.05, warm_steps=1)


def test_two_subjects_alternate_and_compare(make_subject, bandwidth):
    steps = []
    subjects = [
        make_subject("fast", step_ms=2, prefill_ms=4, chatter=True),
        make_subject("slow", step_ms=8, prefill_ms=16, megabytes=150),
    ]
    case = BenchCase(prompt=6, gen=5, batch=2)
    report = run_benchmark(
        subjects, [case], QUICK, bandwidth=bandwidth, progress=lambda what, *count: steps.append((what, *count))
    )

    runs = [what.split(",")[0] for what, _, _ in steps if ": run" in what]
    assert runs == ["fast", "slow"] * 3
    assert [number for _, number, _ in steps] == list(range(1, steps[0][2] + 1))

    fast, slow = report.results
    assert 0.004 <= fast.ttft_s.minimum < slow.ttft_s.minimum
    assert fast.tpot_ms.minimum >= 2
    assert slow.tpot_ms.minimum >= 8
    assert fast.itl_ms.count == 3 * (case.gen - 1)
    assert slow.decode_tokens_per_s.median <= case.batch * 1000 / 8
    assert slow.decode_tokens_per_s.median == pytest.approx(case.batch * 1000 / slow.tpot_ms.median)
    assert fast.prefill_tokens_per_s.maximum <= case.batch * case.prompt / 0.004
    assert fast.prefill_tokens_per_s.maximum == pytest.approx(case.batch * case.prompt / fast.ttft_s.minimum)
    assert slow.peak_rss_bytes - fast.peak_rss_bytes > 100 << 20
    assert all(subject.load_s.count == 2 for subject in report.subjects)

    ratios = {item.metric: item for item in report.comparisons}
    assert set(ratios) == {"prefill", "decode"}
    assert ratios["decode"].numerator == "fast"
    assert len(ratios["decode"].rounds) == 3
    assert ratios["decode"].ratio.median > 1.5


def test_report_renders_and_is_json(make_subject, bandwidth, tmp_path):
    options = BenchOptions(runs=1, load_window_s=0.05, measure_memory=False)
    report = run_benchmark([make_subject("only")], make_cases([3], 2), options, bandwidth=bandwidth)
    console = Console(width=160, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(render_report(report))
    text = console.export_text()
    assert "pp3+tg2" in text
    assert "TTFT" in text
    assert "10.0 GB/s" in text

    write_report(report, tmp_path / "new" / "report.json")
    loaded = json.loads((tmp_path / "new" / "report.json").read_text())
    assert loaded["results"][0]["case"] == {"name": "pp3+tg2", "prompt": 3, "gen": 2, "batch": 1}
    assert loaded["results"][0]["peak_rss_bytes"] is None
    assert "excluded" in loaded["conventions"]["sampling"]


def test_a_spinning_idle_worker_is_reported(make_subject, bandwidth):
    subjects = [make_subject("spins", spin=True), make_subject("works", step_ms=30, busy=True)]
    options = BenchOptions(runs=1, load_window_s=0.05, measure_memory=False)
    report = run_benchmark(subjects, make_cases([2], 10), options, bandwidth=bandwidth)
    assert any("spins used" in warning and "idle" in warning for warning in report.warnings)
    assert not any("works used" in warning for warning in report.warnings)


class Recorder:
    """A worker that remembers its requests."""

    requests: ClassVar[list] = []
    pid = 1

    def __init__(self, label, command):
        self.label = label

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def cpu_seconds(self):
        return 0.0

    def request(self, command, **fields):
        self.requests.append((self.label, command, fields))
        info = {"weight_bytes": 0, "cache_bytes_per_token": 0}
        times = {"first_token_s": 1.0, "step_s": [1.0]}
        return {"load_s": 1.0, "base_rss_bytes": 1, "info": info, "peak_rss_bytes": 5, **times}


def test_subjects_get_the_same_tokens_and_rounds_other_ones(make_subject, bandwidth, monkeypatch):
    monkeypatch.setattr(rounds, "WorkerProcess", Recorder)
    monkeypatch.setattr(Recorder, "requests", [])
    options = BenchOptions(runs=2, load_window_s=0, seed=40, threads=3)
    report = run_benchmark([make_subject("a"), make_subject("b")], make_cases([4], 2), options, bandwidth=bandwidth)
    timed = [(label, fields["seed"]) for label, command, fields in Recorder.requests if command == "run"][-4:]
    assert timed == [("a", 40), ("b", 40), ("a", 41), ("b", 41)]
    assert all(fields["threads"] == 3 for _, command, fields in Recorder.requests if command == "open")
    assert report.results[0].bandwidth_share is None
    assert report.results[0].peak_rss_bytes == 5


def test_errors_of_workers_keep_their_class_and_name_the_subject(make_subject):
    def run(subject, **case):
        with WorkerProcess(subject.label, subject.command) as worker:
            worker.request("open", path=str(subject.path), threads=1)
            worker.request("run", **{"prompt": 2, "gen": 2, "batch": 1, **case})

    with pytest.raises(EngineError, match=r"refuser: the fake engine refuses"):
        run(make_subject("refuser", fail="engine"))
    with pytest.raises(EngineError, match=r"(?s)buggy: run failed, ZeroDivisionError: a bug.*_misbehave"):
        run(make_subject("buggy", fail="bug"))
    with pytest.raises(EngineError, match=r"dying: the worker ended \(status 3\)"):
        run(make_subject("dying", fail="exit"))
    with pytest.raises(UsageError, match=r"needs 11 slots, the engine has 8"):
        run(make_subject("short", max_context=8), prompt=10)


def test_a_worker_that_does_not_answer_is_stopped(make_subject):
    subject = make_subject("sleeper", prefill_ms=60_000)
    with WorkerProcess("sleeper", subject.command) as worker:
        worker.request("open", path=str(subject.path), threads=1)
        with pytest.raises(EngineError, match="no answer to 'run' in time"):
            worker.request("run", timeout_s=0.3, prompt=2, gen=2, batch=1, warm_steps=0)
        assert worker._process.wait(5) != 0


def test_a_command_that_does_not_exist():
    with pytest.raises(EngineError, match="cannot start /no/such/python"):
        WorkerProcess("ghost", ["/no/such/python"])


def test_subjects_and_cases_are_checked(make_subject, tmp_path):
    with pytest.raises(UsageError, match="at least one engine"):
        run_benchmark([], make_cases([1], 2))
    twice = [llmc_subject(tmp_path), llmc_subject(tmp_path)]
    with pytest.raises(UsageError, match="same name"):
        run_benchmark(twice, make_cases([1], 2))
    with pytest.raises(UsageError, match="no case"):
        make_cases([], 2)
    with pytest.raises(UsageError, match="gen at least 2"):
        BenchCase(8, 1)
    with pytest.raises(UsageError):
        BenchOptions(runs=0)


def test_cases_are_a_product_without_repeats():
    cases = make_cases([8, 16, 8], 4, [1, 2])
    assert [case.name for case in cases] == ["pp8+tg4", "pp16+tg4", "pp8+tg4 x2", "pp16+tg4 x2"]


def test_step_bytes_by_hand():
    info = {"weight_bytes": 1000, "cache_bytes_per_token": 10}
    # Steps attend to 5, 6 and 7 tokens of each of 2 rows: 6 on average.
    assert step_bytes(info, BenchCase(prompt=4, gen=4, batch=2)) == 1000 + 2 * 10 * 6
    assert step_bytes({"weight_bytes": 0, "cache_bytes_per_token": 10}, BenchCase(4, 4)) == 0


def test_comparison_pairs_rounds():
    case = BenchCase(10, 3)
    samples = {
        ("a", case): [Sample(1.0, (1.0, 1.0), 0.0), Sample(2.0, (4.0, 4.0), 0.0)],
        ("b", case): [Sample(2.0, (3.0, 3.0), 0.0), Sample(4.0, (4.0, 4.0), 0.0)],
    }
    prefill, decode = compare(samples, ["a", "b"], [case])
    assert prefill.rounds == (2.0, 2.0)
    assert decode.rounds == (3.0, 1.0)
    assert decode.ratio.median == 2.0


def test_warnings(bandwidth):
    assert warnings_of(BenchOptions(), bandwidth, [], 0.0, 0.05, {"a": 0.01}) == ()
    before, after, spins = warnings_of(BenchOptions(), bandwidth, [], 0.4, 0.2, {"a": 0.9})
    assert "40% of the cores before" in before
    assert "20% of the cores after" in after
    assert "a used 90%" in spins


def test_spread():
    assert spread(Summary(1.0, 0.5, 2.0, 3), ".1f") == "1.0 (0.5 - 2.0)"
    assert spread(Summary(1.0, 1.0, 1.0, 1), ".1f", scale=1e3) == "1000.0"
