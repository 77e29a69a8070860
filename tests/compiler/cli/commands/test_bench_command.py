"""bench: what is measured, and where the report goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from typer.testing import Result

from llmc.compiler.base.errors import CheckpointError, UsageError
from llmc.compiler.base.processors import physical_cores
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.cli.commands.bench_command import checkpoint_path, subject_labels
from llmc.runtimes.bench import latency
from llmc.runtimes.bench.analysis import Opened, Sample, analyze, compare
from llmc.runtimes.bench.operators_plan import OperatorsPlan
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS
from llmc.runtimes.bench.quality_plan import QualityPlan
from llmc.runtimes.bench.results import BenchCase, BenchReport, OtherLoad, Subject
from llmc.runtimes.bench.roofline_plan import RooflinePlan
from llmc.runtimes.bench.sweep_plan import SweepPlan
from llmc.runtimes.bench.workers import peers
from llmc.runtimes.bench.workers.peers import PEERS, PeerChoice, PreparedPeer
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.fingerprint import machine_fingerprint
from llmc.runtimes.machine.summary import Summary

Run = Callable[..., Result]
INFO = {"weight_bytes": 10_000_000, "cache_bytes_per_token": 100}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the measurement; its report has made-up samples for what was asked."""

    def run(subjects: Any, cases: Any, options: Any, *, progress: Any, studies: Any) -> BenchReport:
        progress("read bandwidth", 1, 2)
        progress("warm-up", 2, 2)
        samples = {
            (subject.label, case): [Sample(0.1 * (place + 1), (0.01, 0.02), 0.4)] * options.runs
            for place, subject in enumerate(subjects)
            for case in cases
        }
        reached = Bandwidth(Summary(10e9, 9e9, 11e9, 5), threads=1, buffer_bytes=1 << 30, cache_bytes=1 << 20)
        records = tuple(Opened(subject, INFO, 1000, [0.5]).record() for subject in subjects)
        return BenchReport(
            machine=machine_fingerprint(),
            bandwidth=reached,
            options=options,
            subjects=records,
            results=analyze(samples, records, cases, {}, reached),
            comparisons=compare(samples, [subject.label for subject in subjects], cases),
            other_load=OtherLoad(0.4, 0.0),
            warnings=("other processes used 40% of the cores before the benchmark",),
        )

    fake = create_autospec(latency.run_benchmark, side_effect=run)
    monkeypatch.setattr(latency, "run_benchmark", fake)
    return fake


def test_defaults(llmc: Run, measured: Any, tmp_path: Path) -> None:
    result = llmc("bench", tmp_path / "engine")
    assert result.exit_code == 0, result.stderr
    (subject,), cases, options = measured.call_args.args
    assert subject.label == "engine"
    assert cases == (BenchCase(128, 128), BenchCase(512, 128))
    assert (options.runs, options.threads, options.one_at_a_time) == (5, None, False)
    for words in ("pp128+tg128", "decode tok/s", "of bandwidth", "warning: other processes used 40%"):
        assert words in result.stdout


def test_options_and_comparison(llmc: Run, measured: Any, tmp_path: Path) -> None:
    options = ("--prompt", "8, 16", "--gen", 4, "--batch", "1,4", "--runs", 2, "--threads", 3)
    result = llmc("bench", tmp_path / "a", tmp_path / "b", *options)
    assert result.exit_code == 0, result.stderr
    subjects, cases, chosen = measured.call_args.args
    assert [subject.label for subject in subjects] == ["a", "b"]
    assert cases == (BenchCase(8, 4), BenchCase(16, 4), BenchCase(8, 4, 4), BenchCase(16, 4, 4))
    assert (chosen.runs, chosen.threads) == (2, 3)
    assert "a / other" in result.stdout


def test_peers_follow_the_engines(llmc: Run, measured: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def subjects(choice: PeerChoice) -> list[Subject]:
        return [Subject(choice.name, choice.source, ("run", variant)) for variant in PEERS[choice.name].variants][:1]

    monkeypatch.setattr(peers, "peer_subjects", subjects)
    given = ("--peer", "genai=py:one", "--peer", "transformers=py:model", "--peer", "genai=py:two", "--one-at-a-time")
    result = llmc("bench", tmp_path / "engine", *given)
    assert result.exit_code == 0, result.stderr
    found, _, options = measured.call_args.args
    assert [subject.label for subject in found] == ["engine", "genai, one", "transformers", "genai, two"]
    assert options.one_at_a_time
    assert options.threads == physical_cores()
    assert llmc("bench", tmp_path / "engine", "--peer", "genai=py:one", "--threads", 3).exit_code == 0
    assert measured.call_args.args[2].threads == 3


def test_a_peer_that_cannot_be_run(llmc: Run, measured: Any, tmp_path: Path) -> None:
    result = llmc("bench", tmp_path / "engine", "--peer", f"genai={tmp_path}/no/python:{tmp_path}")
    assert result.exit_code == UsageError.exit_code
    assert "no/python does not exist" in result.stderr
    assert not measured.called


def test_json_into_a_file(llmc: Run, measured: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    result = llmc("bench", tmp_path / "engine", "--json", file)
    assert result.exit_code == 0, result.stderr
    assert "Throughput" in result.stdout
    assert json.loads(file.read_text())["subjects"][0]["label"] == "engine"


def test_json_on_stdout(llmc: Run, measured: Any, tmp_path: Path) -> None:
    result = llmc("bench", tmp_path / "engine", "--json", "-")
    assert json.loads(result.stdout)["warnings"][0].startswith("other processes")
    assert "Throughput" not in result.stdout


def test_errors_as_json_only_when_stdout_is_asked_for(llmc: Run, tmp_path: Path) -> None:
    assert "error" in json.loads(llmc("bench", tmp_path, "--gen", 1, "--json", "-").stdout)
    assert llmc("bench", tmp_path, "--gen", 1, "--json", tmp_path / "f").stdout == ""


def test_labels() -> None:
    assert subject_labels([Path("x/a"), Path("y/b")]) == ["a", "b"]
    assert subject_labels([Path("x/a"), Path("y/a"), Path("b")]) == ["x/a", "y/a", "b"]


def test_requests_through_the_generation_loop(llmc: Run, measured: Any, tmp_path: Path) -> None:
    assert llmc("bench", tmp_path / "engine", "--generate", 8, "--temperature", 0.7).exit_code == 0
    options = measured.call_args.args[2]
    assert (options.generate, options.temperature) == (8, 0.7)
    llmc("bench", tmp_path / "engine")
    assert measured.call_args.args[2].generate == 0
    refused = llmc("bench", tmp_path / "engine", "--generate", -1)
    assert refused.exit_code == 2
    assert "-1 requests to generate" in refused.stderr


def test_forms_on_stdout_and_in_a_file(llmc: Run, measured: Any, tmp_path: Path) -> None:
    engine, file = tmp_path / "engine", tmp_path / "out" / "speed.csv"
    table = llmc("bench", engine, "--format", "csv")
    assert table.stdout.startswith("created,cpu_model,")
    written = llmc("bench", engine, "--format", "csv", "--output", file)
    assert (written.exit_code, written.stdout) == (0, "")
    assert len(file.read_text().splitlines()) == 3
    both = llmc("bench", engine, "--format", "llama-bench", "--json", tmp_path / "all.json")
    assert "| engine |" in both.stdout
    assert "tg127 @ d512" in both.stdout
    assert json.loads((tmp_path / "all.json").read_text())["subjects"][0]["label"] == "engine"
    assert json.loads(llmc("bench", engine, "--format", "json").stdout)["schema_version"] == 2
    llmc("bench", engine, "--output", tmp_path / "speed.md")
    assert "**Throughput, median of 5 runs" in (tmp_path / "speed.md").read_text()


def test_an_unknown_form(llmc: Run, measured: Any, tmp_path: Path) -> None:
    refused = llmc("bench", tmp_path / "engine", "--format", "xml")
    assert refused.exit_code == 2
    assert "'llama-bench'" in refused.stderr
    assert not measured.called


@pytest.mark.parametrize("option", ["--runs", "--generate", "--threads"])
def test_a_number_beyond_all_machines_is_told_before(llmc: Run, measured: Any, tmp_path: Path, option: str) -> None:
    refused = llmc("bench", tmp_path / "engine", option, "1" + "0" * 30)
    assert refused.exit_code == UsageError.exit_code
    assert "less than or equal to 1" in refused.stderr
    assert not measured.called


@pytest.mark.parametrize("name", [".", ""])
@pytest.mark.parametrize("option", ["--json", "--output", "--html"])
def test_a_place_that_cannot_be_written_is_told_before(
    llmc: Run, measured: Any, tmp_path: Path, option: str, name: str
) -> None:
    refused = llmc("bench", tmp_path / "engine", f"{option}={name}")
    assert refused.exit_code == UsageError.exit_code
    assert "is a directory; name a file" in refused.stderr
    assert not measured.called


def test_a_price(llmc: Run, measured: Any, tmp_path: Path) -> None:
    """0.1 s for 128 tokens, and 15 ms a step: 3.6 an hour is a thousandth a second."""
    file = tmp_path / "r.json"
    shown = llmc("bench", tmp_path / "engine", "--prompt", 128, "--price", "3.6 EUR/h", "--json", file)
    assert "Cost at 3.6 EUR/h" in shown.stdout
    report = json.loads(file.read_text())
    assert report["price"] == {"text": "3.6 EUR/h", "per_second": pytest.approx(1e-3), "currency": "EUR"}
    (cost,) = report["costs"]
    assert cost["per_million_in"] == pytest.approx(1e3 * 0.1 / 128)
    assert cost["per_million_out"] == pytest.approx(15.0)
    assert llmc("bench", tmp_path / "engine", "--price", "cheap").exit_code == UsageError.exit_code
    assert measured.call_count == 1


def test_figures_are_shown_where_the_report_cannot_be_written_any_more(
    llmc: Run, measured: Any, tmp_path: Path
) -> None:
    result = llmc("bench", tmp_path / "engine", "--json", "/dev/full")
    assert result.exit_code == 71
    assert "/dev/full cannot be written (No space left on device)" in result.stderr
    assert "prefill tok/s" in result.stdout


def test_a_roofline_costs_nothing_and_sweeps_are_asked_for(llmc: Run, measured: Any, tmp_path: Path) -> None:
    assert llmc("bench", tmp_path).exit_code == 0
    assert measured.call_args.kwargs["studies"] == [RooflinePlan({}), QualityPlan()]
    assert llmc("bench", tmp_path, "--curve", "--contexts", "2048,128").exit_code == 0
    plans = measured.call_args.kwargs["studies"]
    assert plans == [RooflinePlan({}), QualityPlan(), SweepPlan.curve(), SweepPlan.contexts([128, 2048])]
    assert llmc("bench", tmp_path, "--operators", "--prompt", 7).exit_code == 0
    assert measured.call_args.kwargs["studies"][-1] == OperatorsPlan((BenchCase(7, 128),))
    result = llmc("bench", tmp_path, "--contexts", "16")
    assert result.exit_code == UsageError.exit_code
    assert "a context of 16 tokens is shorter than the steps" in result.stderr


def test_what_a_token_costs_is_read_of_the_engines_graphs(llmc: Run, measured: Any, engine: Path) -> None:
    assert llmc("bench", engine).exit_code == 0
    plan, _ = measured.call_args.kwargs["studies"]
    assert list(plan.work) == [engine.name]


def test_a_page_to_look_at(llmc: Run, measured: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    result = llmc("bench", tmp_path / "engine", "--html", file)
    assert result.exit_code == 0, result.stderr
    assert "Throughput" in result.stdout
    assert "Benchmark of 1 engine" in file.read_text()
    measured.reset_mock()
    assert llmc("bench", tmp_path / "engine", "--html", tmp_path).exit_code == UsageError.exit_code
    assert not measured.called


def test_the_command_line_is_kept(llmc: Run, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/llmc", "bench", "an engine", "--json", "-"])
    report = json.loads(llmc("bench", tmp_path / "an engine", "--json", "-").stdout)
    assert report["command"] == "llmc bench 'an engine' --json -"


def test_peers_by_name_that_are_missing_are_told_with_their_command(llmc: Run, measured: Any, tmp_path: Path) -> None:
    words = ["--peer", "ctranslate2", "--peer", "llama.cpp@Q4_0", "--peers-dir", tmp_path, "--checkpoint", tmp_path]
    result = llmc("bench", tmp_path / "engine", *words)
    assert result.exit_code == 10
    assert f"llmc bench --install-peers ctranslate2,llama.cpp --peers-dir {tmp_path}" in result.stderr
    measured.assert_not_called()


def test_peers_by_name_are_measured_behind_the_engines(
    llmc: Run, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def prepared(choices: Any, named: Any, locate: Any, progress: Any) -> list[PreparedPeer]:
        asked.append(([each.environment.name for each in choices], locate(named.checkpoint)))
        return [PreparedPeer("ctranslate2 int8", tmp_path, {"": ("worker",)})]

    monkeypatch.setattr("llmc.runtimes.bench.peers.named.named_peers", prepared)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    words = ["--peer", "ctranslate2", "--checkpoint", tmp_path / "model"]
    result = llmc("bench", tmp_path / "engine", *words)
    assert result.exit_code == 0, result.stderr
    assert asked == [(["ctranslate2"], tmp_path / "model")]
    subjects_measured, _, options = measured.call_args.args
    assert [subject.label for subject in subjects_measured] == ["engine", "ctranslate2 int8"]
    assert options.threads == physical_cores()


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--checkpoint .*: no checkpoint; name a directory with config\.json"):
        checkpoint_path(str(tmp_path), NO_PROGRESS)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert checkpoint_path(str(tmp_path / "m.gguf"), NO_PROGRESS) == tmp_path / "m.gguf"


def test_peers_are_listed_and_installed_without_an_engine(
    llmc: Run, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[Any] = []
    monkeypatch.setattr("llmc.runtimes.bench.peers.installation.install_peers", lambda *args: installed.append(args))
    listed = llmc("bench", "--list-peers", "--peers-dir", tmp_path, "--json", "-")
    assert listed.exit_code == 0, listed.stderr
    states = json.loads(listed.stdout)["peers"]
    assert {state["name"]: state["installed"] for state in states} == dict.fromkeys(ENVIRONMENTS, False)
    assert not installed
    result = llmc("bench", "--install-peers", "ctranslate2,vllm", "--peers-dir", tmp_path)
    assert result.exit_code == 0, result.stderr
    ((environments, root, _),) = installed
    assert ([each.name for each in environments], root) == (["ctranslate2", "vllm"], tmp_path)
    assert "vllm: 5.4 GB to fetch, 11.8 GB on the disk" in result.stderr
    assert "missing" in result.stdout
    assert llmc("bench", "--install-peers", "nobody").exit_code == 2
    measured.assert_not_called()


def test_without_an_engine_there_is_nothing_to_measure(llmc: Run, measured: Any) -> None:
    result = llmc("bench")
    assert result.exit_code == 2
    assert "name at least one engine's directory" in result.stderr
