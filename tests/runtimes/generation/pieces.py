"""Tokens that are pieces of text, and what a reader sees who looks for stop strings."""

from __future__ import annotations

from typing import Any

from llmc.runtimes.generation.text import TextTokenizer


class Pieces(TextTokenizer):
    """Each token is a text of its own; ``None`` is a special token, which :meth:`decode` writes as <s>."""

    def __init__(self, *texts: str | None) -> None:
        self.texts, self.eos_ids = texts, ()

    def is_visible(self, token: int, *, skip_special_tokens: bool = True) -> bool:
        return self.texts[token] is not None or not skip_special_tokens

    def decode(self, tokens: Any, *, skip_special_tokens: bool = True) -> str:
        texts = (self.texts[token] for token in tokens)
        return "".join(("" if skip_special_tokens else "<s>") if text is None else text for text in texts)


def cut(text: str, stops: list[str]) -> str:
    """What a reader who looks for the stop strings after every character sees."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text
