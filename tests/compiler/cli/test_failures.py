"""How a failed command ends: exit codes, sentences, streams. Scripts rely on each."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from llmc.compiler.base import errors
from llmc.compiler.base.errors import LlmcError, PassError
from llmc.compiler.cli.app import app
from llmc.compiler.cli.failures import Failure, InterruptError, report, wants_json

EXIT_CODES = {
    "LlmcError": 1,
    "UsageError": 2,
    "CheckpointError": 3,
    "UnsupportedModelError": 4,
    "CaptureError": 5,
    "PassError": 6,
    "FusionContractError": 6,
    "ArtifactError": 7,
    "VerificationError": 8,
    "EngineError": 9,
    "MissingDependencyError": 10,
    "HubError": 11,
    "GateError": 12,
    "UndecidedError": 13,
    "MachineError": 71,
    "OutputError": 74,
}


class WrongCommandLineError(Exception):
    """As typer raises: of no public class, with a public method."""

    def __init__(self, message: str, command: str | None = None) -> None:
        super().__init__(message)
        self.ctx = SimpleNamespace(command_path=command) if command else None

    def format_message(self) -> str:
        return str(self)


def test_every_error_has_its_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LlmcError)]
    assert {kind.__name__: kind.exit_code for kind in kinds} == EXIT_CODES
    for kind in kinds:
        failure = Failure.of(kind("no such thing"))
        assert failure == Failure(kind.__name__, "no such thing", EXIT_CODES[kind.__name__])


def test_a_fusion_that_falls_short_is_a_failed_pass() -> None:
    assert issubclass(errors.FusionContractError, PassError)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (KeyboardInterrupt(), Failure("Interrupted", "interrupted; nothing was left behind", 130)),
        (InterruptError(), Failure("Interrupted", "interrupted; nothing was left behind", 130)),
        (
            ValueError("axis 3\n  is out of bounds"),
            Failure(
                "ValueError",
                "unexpected ValueError: axis 3 is out of bounds (set LLMC_DEBUG=1 to see the traceback)",
                70,
            ),
        ),
        (
            KeyError(),
            Failure("KeyError", "unexpected KeyError (set LLMC_DEBUG=1 to see the traceback)", 70),
        ),
        (
            WrongCommandLineError("No such\n option: --nope."),
            Failure("UsageError", "No such option: --nope; see 'llmc --help'", 2),
        ),
        (
            WrongCommandLineError("Value error, --chunk 0 is too small", "llmc build"),
            Failure("UsageError", "--chunk 0 is too small; see 'llmc build --help'", 2),
        ),
    ],
    ids=["Ctrl-C", "Ctrl-C through typer", "unexpected", "without words", "usage", "usage of a command"],
)
def test_what_is_said(error: BaseException, failure: Failure) -> None:
    assert Failure.of(error) == failure


ARTIFACT = errors.ArtifactError("out exists already")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ARTIFACT, "llmc: error: out exists already\n"),
        (InterruptError(), f"llmc: {Failure.of(InterruptError()).message}\n"),
    ],
)
def test_a_failure_in_words_is_no_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    monkeypatch.delenv("LLMC_DEBUG", raising=False)
    assert report(error, as_json=False) == Failure.of(error).exit_code
    assert capsys.readouterr() == ("", sentence)


def test_a_failure_of_stdout_is_said_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise errors.OutputError("stdout cannot be written")

    assert report(errors.OutputError("stdout is full"), as_json=True) == 74
    assert capsys.readouterr() == ("", "llmc: error: stdout is full\n")
    monkeypatch.setattr("sys.stdout", Full())
    assert report(ARTIFACT, as_json=True) == 7
    assert capsys.readouterr().err == "llmc: error: out exists already\n"


def test_a_failure_in_json_is_the_result(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMC_DEBUG", raising=False)
    assert report(ARTIFACT, as_json=True) == 7
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out) == {
        "error": {"kind": "ArtifactError", "message": "out exists already", "exit_code": 7}
    }


@pytest.mark.parametrize(("debug", "traced"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_traceback_is_shown_on_request_and_is_no_result(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    debug: str | None,
    traced: bool,
    as_json: bool,
) -> None:
    monkeypatch.delenv("LLMC_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("LLMC_DEBUG", debug)
    report(ARTIFACT, as_json=as_json)
    shown = capsys.readouterr()
    assert ("ArtifactError: out exists already" in shown.err) == traced
    if as_json:
        json.loads(shown.out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], False),
        (["verify", "x", "--json"], True),
        (["verify", "x"], False),
        (["verify", "json"], False),
        (["--json"], True),
        (["bench", "x", "--json", "-"], True),
        (["bench", "x", "--json=-"], True),
        (["bench", "x", "--json", "file.json"], False),
        (["bench", "x", "--json=file.json"], False),
        (["bench", "-", "--json"], False),
        (["eval", "x", "--json", "-"], True),
        (["eval", "x", "--json=-"], True),
        (["eval", "x", "--json", "file.json"], False),
        (["eval", "x", "--format", "json"], False),
        (["bench"], False),
        (["bench", "x", "--format", "json"], True),
        (["bench", "x", "--format=json"], True),
        (["bench", "x", "--format", "jsonl"], False),
        (["lint", "x", "--json", "-"], False),
        (["lint", "x", "--format", "json"], True),
        (["lint", "x", "--format=json"], True),
        (["lint", "x", "--format", "sarif"], False),
        (["lint", "x", "--format=table"], False),
        (["lint", "json"], False),
        (["lint", "--json"], False),
    ],
)
def test_which_command_lines_ask_for_json(arguments: list[Any], expected: bool) -> None:
    assert wants_json(arguments) is expected


def test_which_commands_write_their_json_into_a_file() -> None:
    """Their own declarations say it, too."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {name: [it for it in command.params if "--json" in it.opts] for name, command in commands.items()}
    takes = {name: not its[0].is_flag for name, its in options.items() if its}
    assert [name for name, file in takes.items() if wants_json([name, "--json", "file"]) is file] == []
    assert [name for name, file in takes.items() if file and not wants_json([name, "--json", "-"])] == []
