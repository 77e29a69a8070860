"""A run of many types: what is kept, what a crash costs, what is said at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from . import run, table
from .fake_conform import EXITS, HANGS, KILLED, WRONG, fake_conform, replaced_conform
from .grades import Facts, Result
from .state import SOURCES, State, fingerprint
from .table import Record
from .workers import Failure, Limits, run_tasks

GOOD = ("llama", "qwen2", "qwen3", "mistral")


def test_a_crash_costs_its_own_type_only() -> None:
    types = ["llama", KILLED, "qwen2", EXITS, "qwen3"]
    found = dict(run_tasks(fake_conform, types, Limits(jobs=2, seconds=60)))
    assert set(found) == set(types)
    assert found[KILLED] == Failure("its process was ended by SIGKILL")
    assert found[EXITS] == Failure("its process ended with exit code 3")
    assert [found[name].type for name in ("llama", "qwen2", "qwen3")] == ["llama", "qwen2", "qwen3"]  # type: ignore[union-attr]


def test_what_takes_too_long_is_ended() -> None:
    found = dict(run_tasks(fake_conform, [HANGS, *GOOD], Limits(jobs=2, seconds=3)))
    assert found.pop(HANGS) == Failure("not finished after 3 s")
    assert sorted(found) == sorted(GOOD)


def test_a_process_is_replaced_after_its_share() -> None:
    found = [outcome.reason for _, outcome in run_tasks(fake_conform, GOOD, Limits(tasks=3, seconds=60))]
    assert len(set(found[:3])) == 1
    assert found[3] != found[0]


def options(*, resume: bool) -> run.Options:
    return run.Options(GOOD, False, Limits(jobs=2, seconds=60), resume, None, False)


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    state, console = State(tmp_path / "kept" / "state.jsonl"), Console(quiet=True)
    run.grade_types(fake_conform, GOOD[:2], state, options(resume=False), console)
    with state.path.open("a") as file:
        file.write('{"type": "mistral", "cla')  # what a run leaves that is killed while it writes
    found = run.grade_types(replaced_conform, GOOD, state, options(resume=True), console)
    assert [result.grade for result in found.values()] == ["fused", "fused", "exact", "exact"]
    assert list(found) == list(GOOD)
    assert state.read() == found
    again = run.grade_types(replaced_conform, GOOD, state, options(resume=False), console)
    assert {result.reason for result in again.values()} == {"later"}
    assert state.read() == again


def test_results_of_other_sources_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "passes").mkdir()
    (tmp_path / "tests" / "conformance").mkdir(parents=True)
    versions, file = {"transformers": "5.0", "torch": "2.0"}, tmp_path / "passes" / "pack.py"
    file.write_text("one")
    names = [fingerprint(tmp_path, versions), fingerprint(tmp_path, {**versions, "torch": "2.1"})]
    file.write_text("two")
    names.append(fingerprint(tmp_path, versions))
    (tmp_path / "tests" / "conformance" / "tiny_configs.json").write_text("{}")
    names.append(fingerprint(tmp_path, versions))
    assert len(set(names)) == 4
    assert all(name.startswith("transformers-5.0-") for name in names)
    (tmp_path / "tests" / "conformance" / "table.py").write_text("only shows")
    assert fingerprint(tmp_path, versions) == names[-1]


def test_every_source_is_there() -> None:
    assert [source for source in SOURCES if not (table.DOCS.parent / source).exists()] == []


def test_errors_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    state = State(tmp_path / "state.jsonl")
    result = Result("llama", "C", "wrong", "off", {"a": float("inf")}, Facts(layers=2, unfused=("x",)), traceback="T")
    state.append(result)
    assert state.read() == {"llama": result}


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command line with a fake suite, a record of its own, and everything it writes in a folder."""
    recorded = Record.of({}, [Result(name, "Class", "exact") for name in (*GOOD, WRONG, KILLED)])
    monkeypatch.setattr(run, "conform", fake_conform)
    monkeypatch.setattr(State, "current", lambda: State(tmp_path / "state.jsonl"))
    monkeypatch.setattr(Record, "load", lambda: recorded)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_the_command_line(faked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["llama", "qwen2", "--jobs", "2", "--json", str(faked / "all.json")]) == 0
    said = capsys.readouterr().out
    assert "better: llama was exact, is fused" in said
    assert "worse" not in said
    written = json.loads((faked / "all.json").read_text())
    assert [result["type"] for result in written["results"]] == ["llama", "qwen2"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (WRONG, f"worse: {WRONG} was exact, is wrong"),
        (KILLED, f"worse: {KILLED} was exact, is wrong (its process was ended by SIGKILL)"),
        (EXITS, f"new: {EXITS} is wrong (its process ended with exit code 3)"),
    ],
)
def test_the_command_line_fails(name: str, line: str, faked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([name, "llama", "--jobs", "2"]) == 1
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama", "lama"], "transformers has no causal LM of type lama"),
        (["llama", "--write-docs"], "--write-docs records all types"),
        (["--jobs", "0"], "must be positive"),
    ],
)
def test_what_contradicts_itself_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.parse(arguments)
    assert message in capsys.readouterr().err
