"""A sample of the walk over all options, that no option is left out of it, and that its judge sees what is wrong."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from typer.models import OptionInfo

from llmc.compiler.cli.app import COMMANDS
from llmc.compiler.cli.signature import flat

from .command_lines import BASES, FETCHING, CommandLine, command_lines, write_inputs
from .moments import LONG, Moment, command_moments
from .trial import Ending
from .walk import Outcome, _changes, _state, chosen, parse, table

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1800)
def test_a_sample_of_command_lines_is_refused_in_a_sentence_or_works() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.walk", "--every", "60", "--processes", "1", "--minutes", "25"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_command_is_walked() -> None:
    """A new command needs a line here that works, and no more: its options are found."""
    assert list(BASES) == [command.name for command in COMMANDS]


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_option_is_walked(command: str) -> None:
    function = next(item.function for item in COMMANDS if item.name == command)
    asked = [line.asked for line in command_lines() if line.command == command]
    for parameter in inspect.signature(flat(function)).parameters.values():
        _, told = typing.get_args(parameter.annotation)
        flags = [told.default, *(told.param_decls or ())] if isinstance(told, OptionInfo) else [told.metavar]
        names = {name for flag in flags for name in flag.split("/")}
        assert names & {*asked, *FETCHING}, parameter.name


def test_values_fit_their_options() -> None:
    lines = {(line.command, line.arguments[-1]) for line in command_lines()}
    assert {
        ("generate", "--threads=0"),
        ("generate", "--temperature=nan"),
        ("eval", "--text=pipe"),
        ("compile", "--output=/dev/full"),
        ("compile", "--target=x"),
        ("compile", "--asymmetric"),
        ("bench", "--batch=a,b"),
    } <= lines
    first = next(line for line in command_lines() if line.asked == "REPO")
    assert first == CommandLine("push", "REPO", ("push", "engine", "", "--dry-run"))


def test_signals_come_to_every_stage_from_either_side() -> None:
    moments = list(command_moments())
    assert len({moment.name for moment in moments}) == len(moments)
    assert {moment.command for moment in moments} == set(LONG) <= set(BASES)
    assert {moment.signal for moment in moments} == {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize(
    ("number", "code", "error", "faults"),
    [
        (signal.SIGINT, 130, "llmc: interrupted; nothing was left behind\n", []),
        (signal.SIGTERM, 143, "", []),
        (signal.SIGINT, 0, "", []),
        (signal.SIGTERM, 130, "", ["another exit code"]),
        (signal.SIGINT, 70, "Traceback (most recent call last):\n", ["traceback", "another exit code"]),
        (signal.SIGTERM, -9, "", ["another exit code"]),
    ],
)
def test_endings_by_signals_are_judged(number: signal.Signals, code: int, error: str, faults: list[str]) -> None:
    assert Moment("build", (), 0, False, number).faults(code, error) == faults


def test_what_a_failed_command_did_to_its_folder(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    before = _state(tmp_path)
    line, kept = CommandLine("x", "y", ()), Moment("eval", (), 0, False, signal.SIGINT, ("kept",))
    assert _changes(before, _state(tmp_path), 3, line) == []
    (tmp_path / "kept").mkdir()
    assert _changes(before, _state(tmp_path), 3, line) == ["half written"]
    assert _changes(before, _state(tmp_path), 130, kept) == []
    assert _changes(before, _state(tmp_path), 0, line) == []
    (tmp_path / "kept" / ".out.1-0.partial").mkdir()
    assert _changes(before, _state(tmp_path), 0, line) == ["half written"]
    (tmp_path / "kept" / ".out.1-0.partial").rmdir()
    (tmp_path / "folder" / "file").write_text("longer")
    assert _changes(before, _state(tmp_path), 130, kept) == ["lost"]
    (tmp_path / "folder" / "file").unlink()
    assert _changes(before, _state(tmp_path), 130, kept) == ["lost"]


def test_some_can_be_chosen() -> None:
    assert {line.command for line in chosen(parse(["--only", "push", "cost --price"]))} == {"push", "cost"}
    names = {line.asked for line in chosen(parse(["--only", "cost --price"])) if isinstance(line, CommandLine)}
    assert names == {"--price"}
    everything = len(chosen(parse([])))
    assert len(chosen(parse(["--every", "7", "--first", "3"]))) == len(range(3, everything, 7))


def test_table_of_outcomes() -> None:
    endings = [Ending(0, "", 1.0, ()), Ending(2, "", 1.0, ()), Ending(70, "", 1.0, ("traceback",))]
    outcomes = [Outcome(name, "", ending) for name, ending in zip(("a", "a", "b"), endings, strict=True)]
    assert table(outcomes).splitlines()[2:] == [
        "| a | 2 | 1 | 1 | 0 |",
        "| b | 1 | 0 | 0 | 1 |",
        "| all | 3 | 1 | 1 | 1 |",
    ]
