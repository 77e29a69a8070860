"""Every option and argument of every command, with values that nobody should give.

In: the commands, as the command line knows them. Out: :class:`CommandLine`, one for each option and value. A new
option is walked by itself; a new command needs a row of :data:`BASES`, which a test asks for.
"""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typer.models import OptionInfo

from llmc.compiler.cli.app import COMMANDS
from llmc.compiler.cli.signature import flat

BASES = {
    "export": "checkpoint -o out --verify off",
    "optimize": "portable -o out",
    "build": "target -o out",
    "compile": "checkpoint -o out --precision int4 --effort round",
    "verify": "engine",
    "eval": "engine --reference fp32 --text text.txt --window 16 --tokens 64",
    "generate": "engine -p ab --max-tokens 3",
    "bench": "engine --prompt 4 --gen 2 --runs 1 --no-memory",
    "load": "engine --users 1 --duration 0.2 --warm-up 0 --input-len 4 --output-len 2",
    "report": "results.json -o page.html",
    "cost": "results.json --price 2/h",
    "inspect": "engine",
    "lint": "engine/model.onnx --target ort-1.32",
    "push": "engine me/x --dry-run",
    "doctor": "",
}
"""A command line of each command that works in a folder that :func:`write_inputs` filled."""
FETCHING = ("--install-peers",)
"""Options that would fetch packages."""
PLACES = ("", "folder", "pipe", "/dev/full", "/dev/null", "none/such", "text.txt/under", "loop", "ü 模\u202e'\"")
WHOLE = ("", "x", "0", "-1", "1", "1" + "0" * 30, "1.5")
FLOATS = ("", "x", "0", "-1", "nan", "inf", "1e308", "1e-308")
WORDS = ("", "-", "0", "-1", "x" * 3000, "a,b", "x=y:z", "x@y", "ü 模\u202e", *PLACES[1:8])
CHOICES = ("", "x")


@dataclass(frozen=True)
class CommandLine:
    """What is typed.

    Attributes:
        command: Of ``llmc``.
        asked: The argument or option that is as it should not be.
        arguments: All of the command line.
    """

    command: str
    asked: str
    arguments: tuple[str, ...]


def write_inputs(folder: Path) -> None:
    """The places that values name, beside the artifacts."""
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")


def command_lines() -> Iterator[CommandLine]:
    """All of them, in the order of the commands."""
    for command in COMMANDS:
        yield from _lines(command.name, command.function)


def _lines(name: str, function: Callable[..., None]) -> Iterator[CommandLine]:
    base, place = BASES[name].split(), 0
    for parameter in inspect.signature(flat(function)).parameters.values():
        hint, told = typing.get_args(parameter.annotation)
        if not isinstance(told, OptionInfo):
            for value in dict.fromkeys((*PLACES, *WORDS)):
                if not value.startswith("-"):
                    yield CommandLine(name, told.metavar, (name, *base[:place], value, *base[place + 1 :]))
            place += 1
            continue
        # Inside Annotated, typer's record holds the first name where a default would be.
        flags = [flag for names in (told.default, *(told.param_decls or ())) for flag in names.split("/")]
        flag = next(flag for flag in flags if flag.startswith("--"))
        if flag in FETCHING:
            continue
        if told.count or bool in _kinds(hint):
            yield from (CommandLine(name, each, (name, *base, each)) for each in flags)
        else:
            yield from (CommandLine(name, flag, (name, *base, f"{flag}={value}")) for value in _values(hint))


def _kinds(hint: Any) -> list[Any]:
    """The types of a hint, without None and lists around them."""
    if typing.get_origin(hint) is Literal:
        return [hint]
    parts = typing.get_args(hint)
    return [kind for part in parts for kind in _kinds(part)] if parts else [hint]


def _values(hint: Any) -> tuple[str, ...]:
    kinds = _kinds(hint)
    if int in kinds:
        return WHOLE
    if float in kinds:
        return FLOATS
    if any(isinstance(kind, type) and issubclass(kind, Path) for kind in kinds):
        return PLACES
    return CHOICES if any(typing.get_origin(kind) is Literal for kind in kinds) else WORDS
