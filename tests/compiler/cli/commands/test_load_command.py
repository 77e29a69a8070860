"""load: who is asked for what, where the report goes, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llmc.compiler.base.errors import UsageError
from llmc.compiler.cli.load_targets import Target
from llmc.runtimes.bench.ceilings import Ceilings
from llmc.runtimes.bench.load import gate, run
from llmc.runtimes.bench.load.options import LoadOptions
from tests.runtimes.bench.load.openai_server import Behaviour, serving
from tests.runtimes.bench.load.samples import exchange, load_sample, point_of

Run = Callable[..., Result]
REPORT = load_sample(point_of(*(exchange(at / 9, at / 9 + 0.5, at / 9 + 0.6) for at in range(60))))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, LoadOptions, Any]]:
    """Replace the measurement, and keep what it is asked."""
    calls: list[tuple[Any, LoadOptions, Any]] = []

    def measure(targets: Any, options: LoadOptions, threads: int | None, progress: Any) -> Any:
        calls.append((targets, options, threads))
        return REPORT

    monkeypatch.setattr(run, "run_load", measure)
    return calls


def test_engines_are_asked(llmc: Run, measured: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    words = ("--users", "1,3", "--rows", "4", "--threads", "2", "--prefill-chunk", "64", "--input-len", "5-9")
    shown = llmc("load", tmp_path / "a", tmp_path / "b", *words)
    assert shown.exit_code == 0, shown.stderr
    ((targets, options, threads),) = measured
    assert [(it.label, it.rows, it.threads, it.prefill_chunk) for it in targets] == [("a", 4, 2, 64), ("b", 4, 2, 64)]
    assert (options.users, options.input_len, threads) == ((1, 3), "5-9", 2)
    assert "Latency under load" in shown.stdout
    assert "2 users" in shown.stdout


def test_a_server_is_asked(llmc: Run, measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    url = "http://127.0.0.1:1/v1"
    shown = llmc(
        "load", "--url", url, "--model", "m", "--api", "chat", "--key-from", "SOME_KEY", "--body", '{"a": 1}'
    )
    assert shown.exit_code == 0, shown.stderr
    ((target,), _, _) = measured[0]
    assert (target.label, target.model, target.api, target.key, target.body) == (url, "m", "chat", "secret", {"a": 1})


def test_the_report_goes_where_it_is_wanted(
    llmc: Run, measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/llmc", "load", "an engine"])
    files = [tmp_path / name for name in ("l.json", "l.html", "l.csv", "l.xml")]
    words = ("--json", files[0], "--html", files[1], "--format", "csv", "-o", files[2], "--junit", files[3])
    shown = llmc("load", tmp_path, *words)
    assert shown.exit_code == 0, shown.stderr
    report = json.loads(files[0].read_text())
    assert report["load"]["points"][0]["name"] == "2 users"
    assert report["command"] == "llmc load 'an engine'"
    assert "Under load" in files[1].read_text()
    assert files[2].read_text().count("\n") == 2
    assert 'name="llmc load"' in files[3].read_text()


def test_json_on_stdout(llmc: Run, measured: Any, tmp_path: Path) -> None:
    assert json.loads(llmc("load", tmp_path, "--json", "-").stdout)["load"]["complete"] is True


def test_what_was_interrupted_is_shown_and_ends_so(
    llmc: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert REPORT.load is not None
    monkeypatch.setattr(run, "run_load", lambda *_: replace(REPORT, load=replace(REPORT.load, complete=False)))
    shown = llmc("load", tmp_path)
    assert shown.exit_code == 130
    assert "Latency under load" in shown.stdout


def test_a_gate_is_measured_otherwise(llmc: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def measure(*words: Any) -> Any:
        calls.append(words)
        return REPORT

    monkeypatch.setattr(gate, "run_load_gate", measure)
    old = tmp_path / "old"
    old.mkdir()
    shown = llmc("load", tmp_path, "--fail-if", "ttft_p99 > 5", "--baseline", old, "--repeats", "9")
    assert shown.exit_code == 0, shown.stderr
    (((target,), baseline, _, options, *_),) = calls
    assert (target.label, baseline.label) == (tmp_path.name, "old, baseline")
    assert (options.fail_if, options.starts) == (("ttft_p99 > 5",), 9)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "name an engine's directory, or a server"),
        (("dir", "--url", "http://a/v1"), "one of them"),
        (("dir", "--model", "m"), "--url"),
        (("--url", "http://a/v1", "--body", "["), "--body is not JSON"),
        (("--url", "http://a/v1", "--body", "[]"), "no JSON object"),
        (("--url", "http://a/v1", "--key-from", "NO_SUCH_KEY"), "holds no key"),
        (("--url", "http://a/v1", "--tokenizer", "nowhere"), "tokenizer.json"),
        (("dir", "--users", "1", "--rate", "2"), "one of them"),
        (("dir", "--users", "none"), "--users"),
        (("dir", "--baseline", "x"), "--fail-if"),
        (("dir", "--json", "/"), "is a directory"),
        (("nowhere",), "nowhere does not exist"),
        (("--url", "http://127.0.0.1:1/v1"), "does not answer"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(llmc: Run, words: tuple[str, ...], reason: str) -> None:
    shown = llmc("load", *words)
    assert shown.exit_code in (2, 7, 9)
    assert reason in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1


def test_an_api_key_is_text_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "a\r\nX-Other: b")
    with pytest.raises(UsageError, match="no key"):
        Target(url="http://a/v1", key_from="SOME_KEY").server("http://a/v1")


def test_from_end_to_end_against_a_server(llmc: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_ceilings", lambda threads: Ceilings((REPORT.bandwidth,)))
    monkeypatch.setattr(run, "other_load", lambda window_s: 0.0)
    with serving(Behaviour(first_s=0.05, gap_s=0.01)) as url:
        words = ("--users", "3", "--duration", "1.5", "--warm-up", "0.5", "--output-len", "5")
        shown = llmc("load", "--url", url, *words, "--slo", "ttft=60s", "--json", tmp_path / "l.json")
    assert shown.exit_code == 0, shown.stderr
    (point,) = json.loads((tmp_path / "l.json").read_text())["load"]["points"]
    assert point["ok"] == point["requests"] > 0
    assert point["ttft_ms"]["minimum"] >= 50
    assert point["e2e_ms"]["minimum"] >= 90, "the last chunk is never early; the first one may be late"
    assert point["good_share"] == 1.0
    assert point["output_tokens"]["median"] == 5
    assert point["in_flight"] == pytest.approx(3.0, abs=0.5)


@pytest.mark.parametrize("flag", ["--rows", "--threads"])
def test_more_than_any_engine_has_is_refused(llmc: Run, measured: Any, tmp_path: Path, flag: str) -> None:
    shown = llmc("load", tmp_path, flag, str(10**30))
    assert shown.exit_code != 0
    assert flag in shown.stderr
    assert not measured
