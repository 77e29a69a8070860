"""A field's option: its flags, its accepted values, its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import number_list, option, options_of, require_accepted, word_list


@dataclass(frozen=True)
class Bread:
    """A configuration; ``flour`` is nobody's to choose."""

    PANEL: ClassVar = "Bakery"
    rising_hours: int = option(2, "How long it rises.")
    crust: Literal["soft", "dark"] = option("soft", "How it is baked.", "--crust", "-c")
    flour: str = "rye"

    def __post_init__(self) -> None:
        require_accepted(self)


def test_a_flag_is_the_name_of_its_field_unless_another_is_given() -> None:
    assert {name: entry.flags for name, entry in options_of(Bread).items()} == {
        "rising_hours": ("--rising-hours",),
        "crust": ("--crust", "-c"),
    }
    assert options_of(Bread)["crust"].help == "How it is baked."
    assert options_of(Bread)["crust"].panel == "Bakery"


def test_a_field_is_a_field() -> None:
    assert Bread() == Bread(2, "soft", "rye")
    assert Bread(crust="dark").crust == "dark"


def test_values_that_the_type_does_not_list_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--crust burnt is none of soft, dark$"):
        Bread(crust="burnt")  # type: ignore[arg-type]


def test_lists() -> None:
    assert number_list("--n", "128, 512") == (128, 512)
    assert word_list("--gpu", "8.9, 12.0") == ("8.9", "12.0")
    for text in ("", "1,", "0", "-1", "1k", "٣"):
        with pytest.raises(UsageError, match=r"^--n .* is not a list of positive whole numbers; write it as"):
            number_list("--n", text)
