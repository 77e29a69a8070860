"""What is to be evaluated on.

In: what a user asked for. Out: :class:`EvaluationOptions`; a value that makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option
from llmc.compiler.base.options import MOST_THREADS

WINDOW = 512
"""Tokens of a window unless the user asks for another number: llama-perplexity's."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Text, windows, and where the reference's logits are kept."""

    text: Path | None = option(
        None,
        "UTF-8 text, or JSON lines with a text each (.jsonl), to evaluate on. Default: the English text that comes "
        "with llmc, of which nothing is in its calibration text.",
        metavar="FILE",
    )
    tokens: int | None = option(None, "Most tokens of the text. Default: all.", metavar="N")
    window: int = option(WINDOW, "Tokens of a window; the second half of each is scored.", metavar="N")
    threads: int | None = option(
        None, "Threads of the reference and of every engine.", metavar="N", least=1, most=MOST_THREADS
    )
    cache: Path | None = option(
        None, "Where the reference's logits are kept. Default: the user's cache.", "--cache", metavar="DIR"
    )

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < self.window:
            raise UsageError(
                f"{self.tokens} tokens make no window of {self.window}; give more --tokens or a shorter --window"
            )
