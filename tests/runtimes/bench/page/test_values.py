"""A document is not trusted to hold what it should."""

from __future__ import annotations

import math

import pytest

from llmc.runtimes.bench.page.values import Spread, Value


def test_what_is_there() -> None:
    value = Value({"a": {"b": [1, 2.5, "x", True]}, "t": "text"})
    assert value.at("a", "b").numbers == (1.0, 2.5)
    assert [it.raw for it in value.at("a", "b")] == [1, 2.5, "x", True]
    assert value.at("t").text == "text"
    assert list(value.fields()) == ["a", "t"]


@pytest.mark.parametrize("raw", [None, True, "1", [1], {}, math.nan, math.inf, 10**400])
def test_what_is_no_number(raw: object) -> None:
    assert Value(raw).number is None
    assert Value({"median": raw}).spread is None


def test_what_is_not_there() -> None:
    value = Value([1])
    assert value.at("a", "b").raw is None
    assert not list(Value({"a": 1}))
    assert value.fields() == {}
    assert Value(3).text == ""
    assert Value(-1).positive is None
    assert Value(0).positive is None


@pytest.mark.parametrize(
    ("raw", "spread"),
    [
        ({"median": 2, "minimum": 1, "maximum": 3}, Spread(2, 1, 3)),
        ({"median": 2, "minimum": 1}, Spread(2)),
        ({"median": 2, "minimum": 2.5, "maximum": 3}, Spread(2)),
        ({"median": 2, "minimum": -1, "maximum": 3}, Spread(2)),
        (2, Spread(2)),
        ({"median": -2}, None),
        ({"median": 0, "minimum": 0, "maximum": 0}, None),
    ],
)
def test_spreads(raw: object, spread: Spread | None) -> None:
    assert Value(raw).spread == spread


def test_another_unit() -> None:
    assert Spread(1, 0.5, 2).scaled(1e3) == Spread(1e3, 500, 2e3)
    assert Spread(1).scaled(2) == Spread(2)
