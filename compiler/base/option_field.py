"""A field of a configuration that a command line can ask for: its option stands beside its default.

In: a default and what a user is told. Out: a dataclass field whose :class:`Option` the command line reads
(:mod:`llmc.compiler.cli.signature`) and whose accepted values :func:`require_accepted` checks.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from llmc.compiler.base.errors import UsageError

Value = TypeVar("Value")
_KEY = "option"


@dataclass(frozen=True)
class Option:
    """How a command line asks for a field.

    Attributes:
        help: What the value means, a sentence or two.
        flags: As they are typed, ``--kv`` or ``--symmetric/--asymmetric`` first; a field without an option of its own
            name says so here.
        metavar: What stands for the value in help; empty: the name of its type.
        parse: Makes the value of a text; gets the flag, for its error, and the text. Without it the field's type says
            how, and a tuple is an option that may be repeated.
        variable: Environment variable that gives the value where the command line does not.
        least, most: Smallest and largest number that is accepted.
        counts: The value is how often the flag stands there.
        panel: Heading under which help shows it: the ``PANEL`` of its dataclass; empty: the general one.
    """

    help: str
    flags: tuple[str, ...]
    metavar: str = ""
    parse: Callable[[str, str], Any] | None = None
    variable: str = ""
    least: int | None = None
    most: int | None = None
    counts: bool = False
    panel: str = ""


def option(
    default: Value,
    help: str,
    *flags: str,
    metavar: str = "",
    parse: Callable[[str, str], Any] | None = None,
    variable: str = "",
    least: int | None = None,
    most: int | None = None,
    counts: bool = False,
) -> Value:
    """A dataclass field with an :class:`Option`; ``flags`` are made of the field's name where none is given."""
    record = Option(help, flags, metavar, parse, variable, least, most, counts)
    return field(default=default, metadata={_KEY: record})


def options_of(record: type) -> Mapping[str, Option]:
    """The options of a dataclass by the names of their fields, in the fields' order."""
    entries = {item.name: item.metadata[_KEY] for item in fields(record) if _KEY in item.metadata}
    return {
        name: replace(
            entry, flags=entry.flags or ("--" + name.replace("_", "-"),), panel=getattr(record, "PANEL", "")
        )
        for name, entry in entries.items()
    }


def require_accepted(record: Any) -> None:
    """Refuse a value that is none of those that its field's type lists.

    Raises:
        UsageError: a field with an option is a ``Literal`` of other values.
    """
    hints = typing.get_type_hints(type(record))
    for name, entry in options_of(type(record)).items():
        hint = hints[name]
        if typing.get_origin(hint) is Literal and getattr(record, name) not in typing.get_args(hint):
            accepted = ", ".join(map(str, typing.get_args(hint)))
            raise UsageError(f"{entry.flags[0]} {getattr(record, name)} is none of {accepted}")


def number_list(flag: str, text: str) -> tuple[int, ...]:
    """``"128,512"`` -> ``(128, 512)``.

    Raises:
        UsageError: not a list of whole numbers of at least 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{flag} {text!r} is not a list of positive whole numbers; write it as 128,512")
    return tuple(int(part) for part in parts)


def word_list(flag: str, text: str) -> tuple[str, ...]:
    """``"8.9, 12.0"`` -> ``("8.9", "12.0")``; what a word may be the field's owner checks."""
    return tuple(part.strip() for part in text.split(","))
