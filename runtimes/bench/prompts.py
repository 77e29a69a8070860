"""Real prompts for a benchmark, instead of random token ids.

In: a text file with a prompt on each line, or JSON lines (``.jsonl``): ``"a prompt"``, ``{"prompt": "a prompt"}`` or
``{"messages": [{"role": "user", "content": "…"}]}``. Out: :class:`Prompts`: texts and chats for the loop that users
run, and rows of token ids of the same texts for the raw mode.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.input_file import read_input
from llmc.runtimes.bench.case import BenchCase
from llmc.runtimes.generation.text import TextTokenizer

JSON_LINES = ".jsonl"
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A text that is to be continued, or the messages of a chat."""


@dataclass(frozen=True)
class PromptFacts:
    """Which prompts a benchmark used.

    Attributes:
        file: Its name.
        sha256: Hash of its content.
        count: Prompts in it.
    """

    file: str
    sha256: str
    count: int


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, in their order."""

    facts: PromptFacts
    items: tuple[Prompt, ...]

    @property
    def text(self) -> str:
        """Everything that is said in them, a line between two."""
        return "\n".join(item if isinstance(item, str) else _said(item) for item in self.items)


@dataclass(frozen=True)
class TokenText:
    """Token ids of the prompts' text, from which a case's rows are cut.

    Attributes:
        ids: At least one.
    """

    ids: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Prompts, tokenizer: TextTokenizer) -> TokenText:
        """By a model's tokenizer, without what a text begins with.

        Raises:
            UsageError: the text has no token.
        """
        ids = tuple(tokenizer.encode(prompts.text, add_special_tokens=False))
        if not ids:
            raise UsageError(f"{prompts.facts.file} has no token")
        return cls(ids)

    def rows(self, case: BenchCase, turn: int) -> list[list[int]]:
        """``[batch][prompt + gen - 1]`` ids: what follows on each other in the text, which begins again at its end.

        Each row of each round begins where the one before it ended.
        """
        width, size = case.prompt + case.gen - 1, len(self.ids)
        starts = ((turn * case.batch + row) * width for row in range(case.batch))
        return [[self.ids[(start + at) % size] for at in range(width)] for start in starts]


def read_prompts(path: Path) -> Prompts:
    """Read a file of prompts; empty lines are none.

    Raises:
        UsageError: no such file, no text, no prompt in it, or a line of JSON that is no prompt.
    """
    try:
        content = read_input(path)
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--prompts {path} cannot be read as text: {error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    items = [_parsed(line, f"{path}:{number}") if path.suffix == JSON_LINES else line for number, line in numbered]
    if not items:
        raise UsageError(f"--prompts {path} holds no prompt; write one on each line")
    return Prompts(PromptFacts(path.name, hashlib.sha256(content).hexdigest(), len(items)), tuple(items))


def _parsed(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error})") from error
    found = value.get("messages", value.get("prompt")) if isinstance(value, dict) else value
    if isinstance(found, str) and found:
        return found
    if isinstance(found, list) and found and all(isinstance(item, dict) and "role" in item for item in found):
        return found
    raise UsageError(f'{where} is no prompt; write "text", {{"prompt": "text"}} or {{"messages": [{{"role": …}}]}}')


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    contents = (message.get("content") for message in messages)
    return "\n".join(content for content in contents if isinstance(content, str))
