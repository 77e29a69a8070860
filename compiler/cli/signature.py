"""A command's function as typer takes it: configurations in its signature become the options of their fields.

In: ``def verify(directory: Directory, shown: Output)``, where ``Output`` is a dataclass whose fields are options
(:mod:`llmc.compiler.base.option_field`). Out: ``verify(directory, json, quiet, verbose)``, which makes the
``Output`` and calls the function with it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import typer

from llmc.compiler.base.option_field import Option, options_of


class Without(frozenset[str]):
    """``Annotated[Output, Without({"json"})]``: the fields that keep their defaults and are no options here."""


@dataclass(frozen=True)
class _Configuration:
    """A parameter that is a dataclass.

    Attributes:
        kind: The dataclass.
        options: Its fields that are asked for, by name.
    """

    kind: type
    options: dict[str, Option]

    @classmethod
    def of(cls, hint: Any) -> _Configuration | None:
        """What a parameter's type says; None: it is no configuration."""
        kind, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if not (isinstance(kind, type) and is_dataclass(kind)):
            return None
        left_out = frozenset().union(*(mark for mark in marks if isinstance(mark, Without)))
        options = {name: entry for name, entry in options_of(kind).items() if name not in left_out}
        return cls(kind, options)

    def parameters(self) -> list[inspect.Parameter]:
        """One for each option."""
        hints, defaults = typing.get_type_hints(self.kind), {item.name: item.default for item in fields(self.kind)}
        return [_parameter(entry, hints[name], defaults[name]) for name, entry in self.options.items()]

    def build(self, values: dict[str, Any]) -> Any:
        """The configuration, from what the command line holds for its options; None: the field's default."""
        asked = {name: _value(entry, values[_name(entry)]) for name, entry in self.options.items()}
        return self.kind(**{name: value for name, value in asked.items() if value is not None})


def flat(function: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it. Options with the same flag in two configurations are one, which both get."""
    hints = typing.get_type_hints(function, include_extras=True)
    configurations: dict[str, _Configuration] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(function).parameters.values():
        if configuration := _Configuration.of(hints[parameter.name]):
            configurations[parameter.name] = configuration
            for item in configuration.parameters():
                parameters.setdefault(item.name, item)
        else:
            parameters[parameter.name] = parameter.replace(
                annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY
            )

    def command(**values: Any) -> None:
        records = {name: configuration.build(values) for name, configuration in configurations.items()}
        plain = {name: values[name] for name in hints if name in values and name not in records}
        function(**plain, **records)

    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return command


def field_option(record: type, name: str) -> Any:
    """What typer is told of a field, for a command that asks for this one alone."""
    return _told(options_of(record)[name], shown=False)


def _name(entry: Option) -> str:
    return entry.flags[0].partition("/")[0].lstrip("-").replace("-", "_")


def _parameter(entry: Option, hint: Any, default: Any) -> inspect.Parameter:
    if entry.parse is not None:
        hint, default = str | None, ",".join(map(str, default)) or None
    elif typing.get_origin(hint) is tuple:
        hint, default = list[typing.get_args(hint)[0]] | None, None  # type: ignore[misc]
    told = _told(entry, shown=default is not None and not entry.counts)
    return inspect.Parameter(
        _name(entry), inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, told]
    )


def _told(entry: Option, *, shown: bool) -> Any:
    return typer.Option(
        *entry.flags,
        help=entry.help,
        metavar=entry.metavar or None,
        rich_help_panel=entry.panel or None,
        envvar=entry.variable or None,
        min=entry.least,
        max=entry.most,
        count=entry.counts,
        show_default=shown,
    )


def _value(entry: Option, asked: Any) -> Any:
    """A field's value; None: its default."""
    if asked is None:
        return None
    if entry.parse is not None:
        return entry.parse(entry.flags[0], asked)
    return tuple(asked) if isinstance(asked, list) else asked
