"""Frozen dataclasses to JSON and back, with the JSON Schema that goes with them.

In: a dataclass whose fields are scalars, ``Literal``, ``X | None``, ``tuple[X, ...]``, ``Mapping[str, X]``, other
such dataclasses, or :data:`JsonValue` where any JSON will do. A field with the metadata :data:`LEFT_OUT` is none of
it: it has a default, and is neither written nor read. Properties that a class names in ``DERIVED`` are written, for
readers that have no Python; when read they may be missing, and what they say is not heeded.
Out: :func:`encode` gives plain JSON values, :func:`decode` reads them strictly (a missing or unknown key is an error
that names the key), :func:`schema` describes them, and :func:`to_text` writes equal values as equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union, cast

from llmc.compiler.base.errors import ArtifactError, LlmcError

if TYPE_CHECKING:
    JsonValue: TypeAlias = bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
else:
    JsonValue = Any  # a recursive alias has no form that ``typing.get_type_hints`` resolves before Python 3.12

Record = TypeVar("Record")

LEFT_OUT: Mapping[str, bool] = types.MappingProxyType({"left_out": True})
_SCALARS: Mapping[object, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def to_text(value: JsonValue) -> str:
    """Canonical JSON: keys sorted, two spaces, a final newline; the same value gives the same text.

    Raises:
        ArtifactError: a number is not finite, or a value is not JSON.
    """
    try:
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"a value cannot be written as JSON ({error}); record finite, plain values") from error


def from_text(text: str, where: str) -> JsonValue:
    """Parse JSON, refusing NaN, infinities and duplicate keys.

    Raises:
        ArtifactError: ``text`` is not JSON; the message begins with ``where``.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON ({error}); make the artifact again") from error
    return cast("JsonValue", value)


def read_object(path: Path) -> Mapping[str, Any]:
    """A file's JSON object; empty where there is no such file.

    Raises:
        ArtifactError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds a {type(content).__name__} where a JSON object is expected")
    return content


def encode(record: object) -> dict[str, JsonValue]:
    """A dataclass instance as JSON values; every field is written, defaults too."""
    hints = typing.get_type_hints(type(record)) | _derived(type(record))
    names = [*_names(record), *_derived(type(record))]
    return {name: _encode(hints[name], getattr(record, name)) for name in names}


def _names(kind: object) -> list[str]:
    """The fields of a dataclass, or of an instance, that are recorded."""
    return [field.name for field in dataclasses.fields(cast("Any", kind)) if "left_out" not in field.metadata]


def _derived(kind: type[object]) -> dict[str, object]:
    """The properties of a dataclass that are written beside its fields, by name, with their types."""
    names: tuple[str, ...] = getattr(kind, "DERIVED", ())
    return {name: typing.get_type_hints(getattr(kind, name).fget)["return"] for name in names}


def decode(kind: type[Record], value: object, where: str, *, sparse: bool = False) -> Record:
    """Rebuild a dataclass from JSON values.

    Args:
        kind: The dataclass.
        value: What :func:`from_text` gave.
        where: Names the place in error messages, as ``out/llmc.json``.
        sparse: A key that is missing means the field's default, here and in the records inside.

    Raises:
        ArtifactError: a key is missing or unknown, a value has the wrong type, or the dataclass refuses it.
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: expected an object, found {_kind_of(value)}")
    hints = typing.get_type_hints(kind)
    names = _names(kind)
    for key in value:
        if key not in names and key not in _derived(kind):
            raise ArtifactError(f"{where}: unknown key {key!r}; read it with the llmc version that wrote it")
    fields = dataclasses.fields(cast("Any", kind))
    optional = {field.name for field in fields if (field.default, field.default_factory) != (MISSING, MISSING)}
    for name in names:
        if name not in value and not (sparse and name in optional):
            raise ArtifactError(f"{where}: the key {name!r} is missing; make the artifact again")
    present = [name for name in names if name in value]
    values = {name: _decode(hints[name], value[name], f"{where}: {name}", sparse) for name in present}
    try:
        return kind(**values)
    except LlmcError as error:
        raise ArtifactError(f"{where}: {error}") from error


def schema(kind: type[object], *, title: str) -> dict[str, JsonValue]:
    """The JSON Schema (draft 2020-12) of what :func:`encode` writes for ``kind``."""
    definitions: dict[str, JsonValue] = {}
    top = _object_schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **top,
        "$defs": definitions,
    }


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return dict(pairs)


def _encode(hint: object, value: Any) -> JsonValue:
    inner = _optional(hint)
    if inner is not None:
        return None if value is None else _encode(inner, value)
    if dataclasses.is_dataclass(hint):
        return encode(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return [_encode(arguments[0], item) for item in value]
    if origin is Mapping:
        return {str(key): _encode(arguments[1], item) for key, item in value.items()}
    # NumPy scalars become Python's: the JSON writer refuses them, or writes them otherwise.
    if hint is float:
        return float(value)
    if hint is int:
        return operator.index(value)
    return _plain(value)


def _plain(value: Any) -> JsonValue:
    """Free-form JSON with read-only mappings and tuples turned into what the JSON writer takes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return cast("JsonValue", value)


def _decode(hint: object, value: Any, where: str, sparse: bool) -> Any:
    if hint is Any:
        return value
    inner = _optional(hint)
    if inner is not None:
        return None if value is None else _decode(inner, value, where, sparse)
    if dataclasses.is_dataclass(hint):
        return decode(cast("type[object]", hint), value, where, sparse=sparse)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if not any(type(value) is type(accepted) and value == accepted for accepted in arguments):
            raise ArtifactError(f"{where}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{where}[{i}]", sparse) for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _decode(arguments[1], item, f"{where}[{key!r}]", sparse) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint is not type(value):
        raise ArtifactError(f"{where}: expected {_describe(hint)}, found {_kind_of(value)}")
    return value


def _optional(hint: object) -> object | None:
    """``X`` where ``hint`` is ``X | None``, else None."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return None
    inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"a record's field may be X | None but no other union, found {hint}")
    return cast("object", inner[0])


def _object_schema(kind: type[object], definitions: dict[str, JsonValue]) -> dict[str, JsonValue]:
    hints = typing.get_type_hints(kind)
    kinds = {name: hints[name] for name in _names(kind)} | _derived(kind)
    return {
        "description": (kind.__doc__ or "").strip().splitlines()[0],
        "type": "object",
        "properties": {name: _schema(hint, definitions) for name, hint in kinds.items()},
        "required": sorted(kinds),
        "additionalProperties": False,
    }


def _schema(hint: object, definitions: dict[str, JsonValue]) -> JsonValue:
    if hint is Any:
        return True
    inner = _optional(hint)
    if inner is not None:
        return {"anyOf": [_schema(inner, definitions), {"type": "null"}]}
    if dataclasses.is_dataclass(hint):
        kind = cast("type[object]", hint)
        definitions[kind.__name__] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    return {"type": _SCALARS[hint]}


def _describe(hint: object) -> str:
    names = {tuple: "a list", Mapping: "an object", bool: "a boolean", int: "an integer", float: "a number"}
    return names.get(cast("Any", typing.get_origin(hint) or hint), "a string")


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bool: "a boolean", str: "a string"}
    return names.get(type(value), "a number")
