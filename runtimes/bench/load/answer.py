"""What a stream of events says: text, reasoning, how many tokens, why it ended.

In: events of OpenAI's completions or chat completions with their moments. Out: :class:`Answer`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmc.runtimes.bench.load.http_stream import DONE

_REASONING = ("reasoning_content", "reasoning")


@dataclass
class Answer:
    """An answer as it was streamed.

    Attributes:
        chunk_s: Moments of the chunks that held something: text, reasoning, a call of a tool.
        reasoning_chunks: How many of them, from the first, held reasoning alone.
        text: All of it, reasoning included.
        finish: Why it ended; empty where that was not said.
        prompt_tokens, output_tokens, cached_tokens: As ``usage`` says; None: it does not.
        error: What an event of the stream complains of; else empty.
    """

    chunk_s: list[float] = field(default_factory=list)
    reasoning_chunks: int = 0
    text: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""


def read_answer(events: Sequence[tuple[float, str]]) -> Answer:
    """Read events in their order; one that is no JSON is an error."""
    answer, parts = Answer(), []
    for moment, data in events:
        if data == DONE:
            break
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, Mapping):
            answer.error = answer.error or "an event is no JSON object"
            continue
        if value.get("error"):
            answer.error = answer.error or f"error in the stream: {error_text(value)}"
        _read_usage(answer, value.get("usage"))
        text, reasoning, called = _content(answer, value.get("choices"))
        if text or reasoning or called:
            answer.reasoning_chunks += not text and not called and answer.reasoning_chunks == len(answer.chunk_s)
            answer.chunk_s.append(moment)
            parts.append(reasoning + text)
    answer.text = "".join(parts)
    return answer


def error_text(value: object) -> str:
    """The sentence in what a server sends instead of an answer."""
    error = value.get("error", value.get("detail", value)) if isinstance(value, Mapping) else value
    message = error.get("message", error) if isinstance(error, Mapping) else error
    return " ".join(str(message).split())[:200]


def _read_usage(answer: Answer, usage: Any) -> None:
    """The last event with usage counts: some servers send it with each."""
    if not isinstance(usage, Mapping):
        return
    details = usage.get("prompt_tokens_details")
    answer.prompt_tokens = _count(usage.get("prompt_tokens"), answer.prompt_tokens)
    answer.output_tokens = _count(usage.get("completion_tokens"), answer.output_tokens)
    if isinstance(details, Mapping):
        answer.cached_tokens = _count(details.get("cached_tokens"), answer.cached_tokens)


def _count(value: Any, before: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else before


def _content(answer: Answer, choices: Any) -> tuple[str, str, bool]:
    """Text and reasoning of the first choice, and whether it calls a tool."""
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        return "", "", False
    answer.finish = str(choice.get("finish_reason") or answer.finish)
    delta = choice.get("delta")
    if not isinstance(delta, Mapping):
        return _text(choice.get("text")), "", False
    reasoning = next((text for name in _REASONING if (text := _text(delta.get(name)))), "")
    return _text(delta.get("content")), reasoning, bool(delta.get("tool_calls"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
