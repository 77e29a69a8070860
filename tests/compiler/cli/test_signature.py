"""Options of fields in a command's signature, and what the command gets."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner, Result

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import number_list, option
from llmc.compiler.cli.signature import Without, field_option, flat


@dataclass(frozen=True)
class Oven:
    """Every kind of option."""

    heat: int = option(200, "Degrees.", least=1)
    racks: tuple[Path, ...] = option((), "Where.", "--rack", metavar="DIR", variable="RACKS")
    times: tuple[int, ...] = option((), "Minutes.", "--times", metavar="LIST", parse=number_list)
    hours: tuple[int, ...] = option((12, 18), "At.", "--hours", metavar="LIST", parse=number_list)
    fan: bool | None = option(None, "With the fan.", "--fan/--still")
    strict: bool = option(False, "Fail when it burns.")
    loud: int = option(0, "Louder.", "--loud", "-l", counts=True)
    model: str = "gas"


@dataclass(frozen=True)
class Dough:
    """It shares a flag with the oven."""

    strict: bool = option(False, "Fail when it is sour.")
    kind: str = option("rye", "Kind of flour.")


CALLS: list[dict[str, Any]] = []


def bake(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    oven: Oven,
    dough: Annotated[Dough, Without({"kind"})],
) -> None:
    """Bake."""
    CALLS.append({"name": name, "oven": oven, "dough": dough})


def run(*arguments: str, **environment: str) -> Result:
    app = typer.Typer()
    app.command()(flat(bake))
    CALLS.clear()
    return CliRunner().invoke(app, list(arguments), env=environment)


def called(*arguments: str, **environment: str) -> dict[str, Any]:
    result = run(*arguments, **environment)
    assert result.exit_code == 0, result.output
    (call,) = CALLS
    return call


def test_defaults_are_those_of_the_fields() -> None:
    assert called("bread") == {"name": "bread", "oven": Oven(), "dough": Dough()}


def test_options_become_fields() -> None:
    oven = called("bread", "--heat", "180", "--rack", "a", "--rack", "b", "--times", "5,10", "--still", "-ll")["oven"]
    assert oven == Oven(180, (Path("a"), Path("b")), (5, 10), fan=False, loud=2)
    assert called("bread", "--fan", "--hours", "6")["oven"] == Oven(fan=True, hours=(6,))
    assert called("bread", RACKS="c")["oven"] == Oven(racks=(Path("c"),))


def test_a_flag_of_two_configurations_is_one_option_for_both() -> None:
    call = called("bread", "--strict")
    assert (call["oven"], call["dough"]) == (Oven(strict=True), Dough(strict=True))
    names = list(inspect.signature(flat(bake)).parameters)
    assert names == ["name", "heat", "rack", "times", "hours", "fan", "strict", "loud"]


def test_what_is_no_option_here_is_refused() -> None:
    for arguments in (("--kind", "oat"), ("--model", "coal"), ("--heat", "0"), ("--heat", "hot")):
        assert run("bread", *arguments).exit_code == 2, arguments


def test_a_text_that_cannot_be_read_is_a_usage_error() -> None:
    error = run("bread", "--times", "soon").exception
    assert isinstance(error, UsageError)
    assert str(error).startswith("--times 'soon' is not a list")
    empty = run("bread", "--times", "").exception
    assert isinstance(empty, UsageError)


def test_help_says_what_the_fields_say() -> None:
    shown = " ".join(run("--help").output.split())
    for words in (
        "Bake.",
        "Degrees.",
        "default: 200",
        "default: 12,18",
        "Fail when it burns.",
        "--fan",
        "--still",
        "env var: RACKS",
    ):
        assert words in shown
    assert "Fail when it is sour." not in shown


def test_a_field_can_be_asked_for_alone() -> None:
    def preheat(heat: Annotated[int | None, field_option(Oven, "heat")] = None) -> None:
        CALLS.append({"heat": heat})

    app = typer.Typer()
    app.command()(preheat)
    CALLS.clear()
    assert CliRunner().invoke(app, ["--heat", "90"]).exit_code == 0
    assert CliRunner().invoke(app, ["--heat", "0"]).exit_code == 2
    assert CALLS == [{"heat": 90}]
    with pytest.raises(KeyError):
        field_option(Oven, "model")
