"""A JSON Schema's rules as far as ours use them: for tests, which need no package for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
OBJECTS = {"type", "properties", "required", "additionalProperties"}
KNOWN = OBJECTS | {"$schema", "$defs", "$ref", "title", "description", "items", "anyOf", "enum"}


def complaints(schema: Any, value: Any, root: Any, where: str = "") -> Iterator[str]:
    """What ``value`` does that ``schema`` does not allow.

    Raises:
        NotImplementedError: a rule that this does not know.
    """
    if schema is True:
        return
    if unknown := set(schema) - KNOWN:
        raise NotImplementedError(f"rules {unknown}")
    if "$ref" in schema:
        yield from complaints(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, where)
    if "anyOf" in schema and all(list(complaints(each, value, root)) for each in schema["anyOf"]):
        yield f"{where}: none of its kinds"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{where}: {value!r} is no {schema['type']}"
    elif isinstance(value, dict):
        yield from _in_object(schema, value, root, where)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from complaints(schema.get("items", True), item, root, f"{where}[{place}]")


def _in_object(schema: Any, value: dict[str, Any], root: Any, where: str) -> Iterator[str]:
    for name in schema.get("required", []):
        if name not in value:
            yield f"{where}: {name} is missing"
    known = schema.get("properties", {})
    for name, item in value.items():
        rule = known.get(name, schema.get("additionalProperties", True))
        if rule is False:
            yield f"{where}: {name} is unknown"
        else:
            yield from complaints(rule, item, root, f"{where}.{name}")


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])
