"""Records as JSON: what is written, and what is refused by whom with which words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.json_record import (
    LEFT_OUT,
    JsonValue,
    decode,
    encode,
    from_text,
    read_object,
    schema,
    to_text,
)


@dataclass(frozen=True)
class Part:
    """A part of a record."""

    count: int

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ArtifactError("13 is refused")


@dataclass(frozen=True)
class Whole:
    """One field of every kind.

    More about it.
    """

    flag: bool
    share: float
    name: str
    level: Literal[1, "high"]
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part]
    anything: JsonValue
    limit: int | None
    extra: Part | None = None
    version: int = 1


WHOLE = Whole(True, 0.5, "ä", 1, (Part(1), Part(2)), {"a": Part(3)}, {"b": ({"c": (1, None)},)}, 4)
VALUE: dict[str, Any] = {
    "flag": True,
    "share": 0.5,
    "name": "ä",
    "level": 1,
    "parts": [{"count": 1}, {"count": 2}],
    "by_name": {"a": {"count": 3}},
    "anything": {"b": [{"c": [1, None]}]},
    "limit": 4,
    "extra": None,
    "version": 1,
}


# --- text -----------------------------------------------------------------------------------------------------------


def test_text_is_canonical() -> None:
    """Keys sorted at every depth, letters as they are, a final newline."""
    assert to_text({"b": {"d": 1, "c": 2.5}, "a": ["ä", None]}) == (
        '{\n  "a": [\n    "ä",\n    null\n  ],\n  "b": {\n    "c": 2.5,\n    "d": 1\n  }\n}\n'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, {1}, {"a": b"x"}, {(1,): 2}])
def test_what_is_no_json_is_not_written(value: Any) -> None:
    with pytest.raises(ArtifactError, match="a value cannot be written as JSON"):
        to_text(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": [NaN]}', "NaN is not a JSON number"),
        ("Infinity", "Infinity is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ('{"a": 1, "b": 2, "a": 1}', "duplicate key 'a'"),
        ('{"c": [{"a": 1, "a": 2}]}', "duplicate key 'a'"),
        ('{"a": 1', "Expecting ',' delimiter"),
    ],
)
def test_what_is_no_strict_json_is_not_read(text: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=rf"x\.json is not valid JSON \({reason}.*\); make the artifact again"):
        from_text(text, "x.json")


def test_equal_keys_of_different_objects_are_read() -> None:
    assert from_text('[{"a": 1}, {"a": {"a": 2}}]', "x.json") == [{"a": 1}, {"a": {"a": 2}}]


def test_a_files_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert read_object(path) == {}
    path.write_text('{"a": "ä"}', encoding="utf-8")
    assert read_object(path) == {"a": "ä"}
    assert read_object(tmp_path) == {}, "a folder is no file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"[1]", "holds a list where a JSON object is expected"),
        (b"null", "holds a NoneType where"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"config\.json {message}"):
        read_object(tmp_path / "config.json")


# --- records --------------------------------------------------------------------------------------------------------


def test_every_field_is_written_and_read_again() -> None:
    assert encode(WHOLE) == VALUE
    assert decode(Whole, json.loads(to_text(encode(WHOLE))), "x.json") == dataclasses.replace(
        WHOLE, anything={"b": [{"c": [1, None]}]}
    )
    full = dataclasses.replace(WHOLE, limit=None, extra=Part(5), level="high")
    assert encode(full) == {**VALUE, "limit": None, "extra": {"count": 5}, "level": "high"}
    assert decode(Whole, encode(full), "x.json").extra == Part(5)


def test_numbers_of_numpy_are_written_as_pythons() -> None:
    written = encode(dataclasses.replace(WHOLE, share=np.float32(0.5), limit=np.int64(4), version=np.int32(1)))
    assert written == VALUE
    assert [type(written[name]) for name in ("share", "limit", "version")] == [float, int, int]


def test_a_whole_number_is_a_number_where_one_is_due() -> None:
    share = decode(Whole, {**VALUE, "share": 2}, "x.json").share
    assert (share, type(share)) == (2.0, float)
    assert encode(dataclasses.replace(WHOLE, share=2))["share"].__class__ is float


def test_a_fraction_is_not_cut_to_a_whole_number() -> None:
    fraction: Any = 1.5
    with pytest.raises(TypeError):
        encode(Part(fraction))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flag": 1}, "flag: expected a boolean, found a number"),
        ({"share": True}, "share: expected a number, found a boolean"),
        ({"share": "1"}, "share: expected a number, found a string"),
        ({"name": None}, "name: expected a string, found null"),
        ({"version": True}, "version: expected an integer, found a boolean"),
        ({"version": 1.0}, "version: expected an integer, found a number"),
        ({"limit": "4"}, "limit: expected an integer, found a string"),
        ({"level": 2}, "level: 2 is not one of 1, high"),
        ({"level": True}, "level: True is not one of 1, high"),
        ({"level": "low"}, "level: 'low' is not one of 1, high"),
        ({"parts": {}}, "parts: expected a list, found an object"),
        ({"parts": [{"count": 1}, {"count": "2"}]}, r"parts\[1\]: count: expected an integer, found a string"),
        ({"parts": [{"count": 1}, 2]}, r"parts\[1\]: expected an object, found a number"),
        ({"by_name": []}, "by_name: expected an object, found a list"),
        (
            {"by_name": {"a": {"count": 1}, "b": {"count": None}}},
            r"by_name\['b'\]: count: expected an integer",
        ),
        ({"extra": {"count": 13}}, "extra: 13 is refused"),
        ({"extra": {}}, "extra: the key 'count' is missing; make the artifact again"),
        (
            {"extra": {"count": 1, "more": 2}},
            "extra: unknown key 'more'; read it with the llmc",
        ),
        ({"more": 2}, "unknown key 'more'"),
    ],
)
def test_reading_says_what_is_wrong_and_where(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=rf"^x\.json: {message}"):
        decode(Whole, {**VALUE, **change}, "x.json")


@pytest.mark.parametrize("missing", sorted(VALUE))
def test_reading_wants_every_key_even_one_with_a_default(missing: str) -> None:
    value = {name: item for name, item in VALUE.items() if name != missing}
    with pytest.raises(ArtifactError, match=rf"^x\.json: the key '{missing}' is missing"):
        decode(Whole, value, "x.json")


@dataclass(frozen=True)
class Sparse:
    count: int
    parts: tuple[Sparse, ...] = ()
    by_name: Mapping[str, Sparse] = dataclasses.field(default_factory=dict)
    extra: Sparse | None = None


def test_a_sparse_record_lacks_what_has_a_default() -> None:
    """In the records inside, too; one that has no default is missed there as everywhere."""
    value = {"count": 1, "parts": [{"count": 2}], "by_name": {"a": {"count": 3}}, "extra": {"count": 4}}
    expected = Sparse(1, (Sparse(2),), {"a": Sparse(3)}, Sparse(4))
    assert decode(Sparse, value, "x.json", sparse=True) == expected
    with pytest.raises(ArtifactError, match=r"parts\[0\]: the key 'count' is missing"):
        decode(Sparse, {"count": 1, "parts": [{}]}, "x.json", sparse=True)
    with pytest.raises(ArtifactError, match="the key 'parts' is missing"):
        decode(Sparse, {"count": 1}, "x.json")


@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_a_record_is_an_object(value: object) -> None:
    with pytest.raises(ArtifactError, match=r"^x\.json: expected an object, found"):
        decode(Whole, value, "x.json")


def test_a_field_of_two_types_is_a_mistake_of_the_record() -> None:
    @dataclass(frozen=True)
    class Torn:
        either: int | str | None

    with pytest.raises(TypeError, match="but no other union"):
        encode(Torn(1))


def test_the_schema_describes_what_is_written() -> None:
    described: Any = schema(Whole, title="whole.json")
    assert described["title"] == "whole.json"
    assert described["description"] == "One field of every kind."
    assert described["required"] == sorted(VALUE)
    assert described["additionalProperties"] is False
    reference = {"$ref": "#/$defs/Part"}
    assert described["properties"] == {
        "flag": {"type": "boolean"},
        "share": {"type": "number"},
        "name": {"type": "string"},
        "level": {"enum": [1, "high"]},
        "parts": {"type": "array", "items": reference},
        "by_name": {"type": "object", "additionalProperties": reference},
        "anything": True,
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "extra": {"anyOf": [reference, {"type": "null"}]},
        "version": {"type": "integer"},
    }
    assert described["$defs"] == {
        "Part": {
            "description": "A part of a record.",
            "type": "object",
            "properties": {"count": {"type": "integer"}},
            "required": ["count"],
            "additionalProperties": False,
        }
    }


@dataclass(frozen=True)
class Partly:
    """One field is no part of the record."""

    kind: str
    scales: tuple[float, ...] = dataclasses.field(default=(), metadata=LEFT_OUT)


def test_a_field_may_be_left_out() -> None:
    """It still tells two instances apart."""
    record = Partly("int8", (0.5,))
    assert encode(record) == {"kind": "int8"}
    assert record != Partly("int8")
    assert decode(Partly, {"kind": "int8"}, "here") == Partly("int8")
    described: Any = schema(Partly, title="partly.json")
    assert set(described["properties"]) == set(described["required"]) == {"kind"}
    with pytest.raises(ArtifactError, match="unknown key 'scales'"):
        decode(Partly, {"kind": "int8", "scales": [0.5]}, "here")


def test_json_that_is_nested_too_deep(tmp_path: Path) -> None:
    text = "[" * 100_000
    with pytest.raises(ArtifactError, match=r"x\.json is not valid JSON"):
        from_text(text, "x.json")
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        read_object(tmp_path / "x.json")


# --- derived --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Square:
    """A record that writes what follows from its fields."""

    DERIVED: ClassVar[tuple[str, ...]] = ("area",)
    side: int

    @property
    def area(self) -> float | None:
        return self.side**2 or None


def test_what_follows_from_the_fields_is_written_and_not_heeded() -> None:
    assert encode(Square(3)) == {"side": 3, "area": 9.0}
    assert encode(Square(0)) == {"side": 0, "area": None}
    for value in ({"side": 3, "area": 9.0}, {"side": 3}, {"side": 3, "area": "wrong"}):
        assert decode(Square, value, "f") == Square(3)
    with pytest.raises(ArtifactError, match="unknown key 'volume'"):
        decode(Square, {"side": 3, "volume": 1}, "f")


def test_the_schema_has_what_follows_from_the_fields() -> None:
    plain: Any = schema(Square, title="t")
    assert plain["properties"]["area"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    assert plain["required"] == ["area", "side"]
