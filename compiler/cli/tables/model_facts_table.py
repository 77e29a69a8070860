"""What a model is before anything is made of it, as a table.

In: :class:`ModelFacts`. Out: a rich table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llmc.compiler.cli.tables.rows import pairs

if TYPE_CHECKING:
    from llmc.compiler.base.json_record import JsonValue
    from llmc.compiler.driver.model_facts import EndToken, ModelFacts


def facts_table(facts: ModelFacts) -> Table:
    """Two columns: what, and its value."""
    return pairs(f"Model in {facts.path}", ((name, Text(value)) for name, value in _rows(facts)))


def _rows(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    yield "architecture", facts.model_type or "not stated"
    yield "vocabulary", "not stated" if facts.vocab_size is None else f"{facts.vocab_size:,} tokens"
    yield "context", "not stated" if facts.context is None else f"{facts.context:,} tokens"
    yield "window", _window(facts)
    yield "rotation", _parameters(facts.rope) or "not stated"
    yield "end tokens", ", ".join(map(_end_token, facts.end_tokens)) or "none"
    yield "source stored as", facts.stored_as or "not recorded"


def _window(facts: ModelFacts) -> str:
    if facts.window is None:
        return "none"
    layers = f" in {facts.windowed_layers} layers" if facts.windowed_layers else ""
    return f"{facts.window:,} tokens{layers}"


def _end_token(token: EndToken) -> str:
    return str(token.id) if token.text is None else f"{token.id} {token.text}"


def _parameters(values: Mapping[str, JsonValue]) -> str:
    """As ``rope_theta 10000.0, factor 8.0``; lists are counted where they are long."""
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: JsonValue) -> str:
    if isinstance(value, Mapping):
        return f"({_parameters(value)})"
    if isinstance(value, list) and len(value) > 4:
        return f"[{len(value)} values]"
    return str(value)
