"""Help, exit codes, errors in words and in JSON."""

from __future__ import annotations

import ast
import inspect
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from typer.testing import Result

from llmc.compiler.base import errors
from llmc.compiler.base.errors import ArtifactError, LlmcError
from llmc.compiler.cli.app import COMMANDS, Command
from llmc.compiler.cli.failures import wants_json

Run = Callable[..., Result]
Replace = Callable[..., Mock]

HEAVY = ("torch", "onnxruntime", "transformers", "onnx", "onnx_ir", "numpy", "tokenizers", "safetensors")
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LlmcError)]
EXPORT = ("export", "model", "-o", "out")


@pytest.mark.parametrize("arguments", [("--help",), ("compile", "--help")])
def test_help_is_light(arguments: tuple[str, ...]) -> None:
    """Counted in modules, since a clock measures what else the machine does: 0.2 s where it is idle."""
    code = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from llmc.compiler.cli.app import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert not set(loaded) & set(HEAVY)
    own = [name for name in loaded if name.startswith("llmc.")]
    assert len(own) < 85, own
    assert len(loaded) < 600, "packages that help does not need"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_parses_calls_and_renders(command: Command) -> None:
    (function,) = ast.parse(inspect.getsource(command.function)).body
    assert isinstance(function, ast.FunctionDef)
    lines = (function.end_lineno or 0) - function.body[1].lineno + 1
    assert lines <= 25, f"the body has {lines} lines; what is more belongs into a library"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_of_every_command(llmc: Run, command: Command) -> None:
    result = llmc(command.name, "--help", env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert (command.function.__doc__ or "").splitlines()[0] in text
    assert "Examples:" in text
    assert all(" ".join(example.split()) in text for example in command.examples)
    assert ("Gemma Terms of Use" in text) == command.takes_model


def test_examples_parse() -> None:
    """An example that shows an option that is not there is worse than none."""
    import shlex

    from typer.main import get_command

    from llmc.compiler.cli.app import app

    group = get_command(app)
    for command in COMMANDS:
        for example in command.examples:
            words = shlex.split(re.sub(r" < \S+$", "", example))
            assert words[:2] == ["llmc", command.name]
            context = group.commands[command.name].make_context(command.name, words[2:])
            assert context.params


def test_commands_are_in_the_order_of_use(llmc: Run) -> None:
    from typer.main import get_command

    from llmc.compiler.cli.app import app

    names = [command.name for command in COMMANDS]
    group: Any = get_command(app)
    assert group.list_commands(None) == names != sorted(names)
    shown = llmc("--help").stdout
    assert sorted(names, key=lambda name: shown.index(f"│ {name} ")) == names


def test_no_arguments_is_help(llmc: Run) -> None:
    result = llmc()
    assert result.exit_code == 0
    assert "compile" in result.stdout


def test_version(llmc: Run) -> None:
    assert llmc("--version").stdout.startswith("llmc ")


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_is_one_sentence_and_its_exit_code(
    llmc: Run, replace_driver: Replace, kind: type[LlmcError]
) -> None:
    replace_driver("export", kind("no [such] thing; do that"))
    result = llmc(*EXPORT)
    assert result.exit_code == kind.exit_code
    assert result.stdout == ""
    assert result.stderr == "llmc: error: no [such] thing; do that\n"


def test_an_error_as_json(llmc: Run, replace_driver: Replace) -> None:
    replace_driver("export", ArtifactError("out exists already"))
    result = llmc(*EXPORT, "--json")
    assert result.exit_code == 7
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "error": {"kind": "ArtifactError", "message": "out exists already", "exit_code": 7}
    }


def test_traceback_only_on_request(llmc: Run, replace_driver: Replace) -> None:
    replace_driver("export", ArtifactError("out exists already"))
    assert "Traceback" not in llmc(*EXPORT).stderr
    shown = llmc(*EXPORT, env={"LLMC_DEBUG": "1"})
    assert shown.exit_code == 7
    assert "Traceback" in shown.stderr
    assert shown.stderr.endswith("llmc: error: out exists already\n")


def test_unexpected_error(llmc: Run, replace_driver: Replace) -> None:
    replace_driver("export", ValueError("axis 3\n is out of bounds"))
    result = llmc(*EXPORT)
    assert result.exit_code == 70
    assert result.stderr == (
        "llmc: error: unexpected ValueError: axis 3 is out of bounds (set LLMC_DEBUG=1 to see the traceback)\n"
    )


def test_interrupt(llmc: Run, replace_driver: Replace) -> None:
    replace_driver("export", KeyboardInterrupt())
    result = llmc(*EXPORT)
    assert result.exit_code == 130
    assert result.stderr == "llmc: interrupted; nothing was left behind\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frobnicate",), "No such command 'frobnicate'; see 'llmc --help'"),
        (("export", "model"), "Missing option '--output'"),
        (("export", "model", "-o", "out", "--dtype", "fp8"), "'fp8' is not one of 'fp32', 'fp16', 'bf16'"),
        (("export", "model", "-o", "out", "--nope"), "No such option: --nope"),
        (("optimize", "dir"), "no output directory; give one with -o DIR"),
        (("optimize", "dir", "-o", "out", "--block-size", "33"), "--block-size 33 is not a power of two"),
        (("bench", "dir", "--prompt", "12,x"), "--prompt '12,x' is not a list"),
        (("bench", "dir", "--batch", "0"), "--batch '0' is not a list"),
    ],
)
def test_wrong_command_lines(llmc: Run, arguments: tuple[str, ...], words: str) -> None:
    result = llmc(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.startswith("llmc: error: ")
    assert result.stderr.count("\n") == 1


def test_a_wrong_command_line_as_json(llmc: Run) -> None:
    result = llmc("verify", "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["exit_code"], error["kind"]) == (2, 2, "UsageError")


def test_json_is_recognised_before_parsing() -> None:
    assert wants_json(["verify", "x", "--json"])
    assert not wants_json(["verify", "x"])
    assert wants_json(["bench", "x", "--json", "-"])
    assert wants_json(["bench", "x", "--json=-"])
    assert not wants_json(["bench", "x", "--json", "file.json"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; sys.argv = ['llmc', 'generate', '--help']; from llmc.compiler.cli.app import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
