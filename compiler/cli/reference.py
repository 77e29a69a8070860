"""The command reference: ``python -m llmc.compiler.cli.reference [FILE]``.

In: the commands' signatures and docstrings. Out: Markdown, on stdout or in a file; ``docs/commands.md`` is made by
it, and a test compares the two.
"""

from __future__ import annotations

import inspect
import signal
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from typer.models import OptionInfo

from llmc.compiler.base import errors
from llmc.compiler.base.errors import LlmcError
from llmc.compiler.base.options import MODEL_PATH_VARIABLE
from llmc.compiler.cli.app import COMMANDS, LICENCE_NOTE, Command
from llmc.compiler.cli.failures import DEBUG_VARIABLE, INTERRUPTED, SOFTWARE
from llmc.compiler.cli.signature import flat

_HEADER = """# Commands

<!-- Made by `make docs` from the commands themselves; edit those. -->

`llmc COMMAND --help` shows the same in the terminal. Results go to stdout, progress and logs to stderr. With
`--json`, stdout holds one JSON document and nothing else, also when the command fails: `{"error": {"kind", "message",
"exit_code"}}`. `llmc --version` shows the version.
"""


def reference() -> str:
    """The whole page."""
    sections = [_HEADER, *(_section(command) for command in COMMANDS), _licence(), _environment(), _exit_codes()]
    return "\n".join(sections)


def _section(command: Command) -> str:
    arguments, options = _parameters(command.function)
    usage = " ".join(["llmc", command.name, *(str(info.metavar) for _, info, _ in arguments), "[OPTIONS]"])
    lines = [f"## llmc {command.name}", "", inspect.cleandoc(command.function.__doc__ or ""), "", f"    {usage}", ""]
    lines += ["| argument or option | meaning | default |", "|---|---|---|"]
    lines += [f"| `{_cell(info.metavar)}` | {_cell(info.help)} | required |" for _, info, _ in arguments]
    lines += [_option_row(parameter, info, hint) for parameter, info, hint in options]
    lines += ["", "Examples:", "", *(f"    {example}" for example in command.examples), ""]
    return "\n".join(lines)


_Row = tuple[inspect.Parameter, Any, Any]


def _parameters(function: Callable[..., None]) -> tuple[list[_Row], list[_Row]]:
    """Arguments and options: the parameter, what typer is told of it, its type."""
    rows: tuple[list[_Row], list[_Row]] = ([], [])
    for parameter in inspect.signature(flat(function)).parameters.values():
        hint, info = typing.get_args(parameter.annotation)
        rows[isinstance(info, OptionInfo)].append((parameter, info, hint))
    return rows


def _option_row(parameter: inspect.Parameter, info: OptionInfo, hint: Any) -> str:
    # Inside Annotated, typer's record holds the first name where a default would be.
    names = ", ".join(f"`{name}`" for name in (info.default, *(info.param_decls or ())))
    value = _value_name(info, hint)
    name = f"{names} {value}".strip()
    meaning = _cell(info.help)
    if info.envvar:
        meaning += f" Also `{info.envvar}`."
    if parameter.default is inspect.Parameter.empty:
        return f"| {name} | {meaning} | required |"
    plain = parameter.default is None or parameter.default is False or info.count
    return f"| {name} | {meaning} | {'' if plain else f'`{parameter.default}`'} |"


def _value_name(info: OptionInfo, hint: Any) -> str:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not NoneType]
    if typing.get_origin(hint) is Literal:
        return _cell("`" + "|".join(str(kind) for kind in kinds) + "`")
    if info.count or bool in kinds:
        return ""
    return f"`{info.metavar or getattr(kinds[0], '__name__', 'value').upper()}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _licence() -> str:
    return f"## Licences of built-in models\n\n{textwrap.fill(LICENCE_NOTE, 118)}\n"


def _environment() -> str:
    return f"""## Environment

- `{MODEL_PATH_VARIABLE}`: directories in which the packages of built-in models are looked for, as `--model-path`.
- `{DEBUG_VARIABLE}=1`: show the traceback of an error too.
"""


def _exit_codes() -> str:
    rows = [(kind.exit_code, f"`{kind.__name__}` ", _first_line(kind)) for kind in _error_classes()]
    rows += [
        (0, "", "Success."),
        (SOFTWARE, "", "An error that llmc did not foresee: please report it."),
        (INTERRUPTED, "", "Interrupted; nothing was left behind."),
        (128 + signal.SIGPIPE, "", "Whoever read stdout has gone, as `head` does."),
        (128 + signal.SIGTERM, "", "Ended by SIGTERM (SIGHUP: 129); nothing was left behind."),
    ]
    rows.sort(key=lambda row: row[0])
    head = ["## Exit codes", "", "| code | error | meaning |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {code} | {name}| {meaning} |" for code, name, meaning in rows), ""])


def _error_classes() -> Iterator[type[LlmcError]]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, LlmcError):
            yield kind


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def main(arguments: list[str]) -> None:
    """Write the page into the file that is named, or to stdout."""
    text = reference()
    if arguments:
        path = Path(arguments[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
