"""How a command ends that did not succeed: one sentence, one exit code.

In: whatever was raised. Out: :class:`Failure`, shown on stderr, or as JSON on stdout.

    LlmcError             its sentence                                      its exit code
    a wrong command line  what is wrong with it                             2
    Ctrl-C                "interrupted; nothing was left behind"            130
    a limit of the machine  which, and what to do                           71 (EX_OSERR)
    anything else         its type, and how to see where it came from       70 (EX_SOFTWARE of sysexits.h)
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from llmc.compiler.base.errors import LlmcError, MachineError, OutputError
from llmc.compiler.cli.machine_limits import machine_error, no_more_files

log = logging.getLogger(__name__)
DEBUG_VARIABLE = "LLMC_DEBUG"
_JSON_FILES = ("bench", "eval", "load")
"""Commands whose --json names a file."""
USAGE, SOFTWARE, INTERRUPTED = 2, 70, 130


class InterruptError(Exception):
    """Ctrl-C, on its way through a library that would end the process without a word."""


@dataclass(frozen=True)
class Failure:
    """What is said about a failed command.

    Attributes:
        kind: Class of the error.
        message: One sentence.
        exit_code: Of the process.
    """

    kind: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Say what went wrong."""
        if not isinstance(error, MachineError) and (refusal := no_more_files(error)) is not None:
            return cls.of(refusal)
        if isinstance(error, LlmcError):
            return cls(type(error).__name__, str(error), error.exit_code)
        if isinstance(error, InterruptError | KeyboardInterrupt):
            return cls("Interrupted", "interrupted; nothing was left behind", INTERRUPTED)
        if is_usage_error(error):
            return cls("UsageError", _usage_sentence(error), USAGE)
        if (refusal := machine_error(error)) is not None:
            return cls.of(refusal)
        name = type(error).__name__
        detail = " ".join(str(error).split())
        cause = f"{name}: {detail}" if detail else name
        return cls(name, f"unexpected {cause} (set {DEBUG_VARIABLE}=1 to see the traceback)", SOFTWARE)

    def to_json(self) -> dict[str, object]:
        """What ``--json`` prints instead of a result."""
        return {"error": {"kind": self.kind, "message": self.message, "exit_code": self.exit_code}}


def report(error: BaseException, *, as_json: bool) -> int:
    """Show an error and return the exit code; with ``LLMC_DEBUG`` set, the traceback too."""
    failure = Failure.of(error)
    if os.environ.get(DEBUG_VARIABLE, "0") not in {"", "0"}:
        traceback.print_exception(error, file=sys.stderr)
    if as_json and not isinstance(error, OutputError):
        try:
            sys.stdout.write(json.dumps(failure.to_json(), indent=2) + "\n")
            sys.stdout.flush()
            return failure.exit_code
        except OutputError as second:
            log.debug("%s", second)  # then as without --json
    prefix = "" if failure.exit_code == INTERRUPTED else "error: "
    sys.stderr.write(f"llmc: {prefix}{failure.message}\n")
    return failure.exit_code


def is_usage_error(error: BaseException) -> bool:
    """Whether typer refused the command line; its exception classes have no public name, but a public method."""
    return callable(getattr(error, "format_message", None))


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON on stdout, even one that cannot be parsed."""
    command = arguments[0] if arguments else ""
    asking = [("--format", "json")] * (command in ("bench", "lint", "load")) + [("--json", "-")] * (
        command in _JSON_FILES
    )
    if asking:
        return any(f"{flag}={value}" in arguments for flag, value in asking) or any(
            pair in asking for pair in itertools.pairwise(arguments)
        )
    return "--json" in arguments


def _usage_sentence(error: BaseException) -> str:
    message = " ".join(str(error.format_message()).split()).rstrip(".")  # type: ignore[attr-defined]
    message = message.replace("Value error, ", "")  # pydantic's prefix
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "llmc"
    return f"{message}; see '{command} --help'"
