"""A text as windows of tokens.

In: a text, a model's tokenizer. Out: tokens [windows, length], of windows that lie evenly over the text.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.text import TextTokenizer

log = logging.getLogger(__name__)


def text_windows(directory: Path, text: str, count: int, length: int, name: str) -> npt.NDArray[np.int64]:
    """Windows of a text, [at most ``count``, ``length``] int64.

    Args:
        directory: Holds the tokenizer.
        text: Any text.
        count: Windows that are wanted.
        length: Tokens of each, of which the first are those that the tokenizer begins every text with.
        name: What the text is called, for errors.

    Raises:
        UsageError: there is no tokenizer, or the text fills no window.
    """
    if not (directory / "tokenizer.json").exists():
        raise UsageError(
            "the model comes without a tokenizer (tokenizer.json), so no text can calibrate it; give --effort fast"
        )
    tokenizer = TextTokenizer.from_directory(directory)
    plain = tokenizer.encode("a", add_special_tokens=False)
    marked = tokenizer.encode("a")
    begin = marked[: len(marked) - len(plain)] if marked[-len(plain) :] == plain else []
    tokens, inner = tokenizer.encode(text, add_special_tokens=False), length - len(begin)
    whole = len(tokens) // inner if inner > 0 else 0
    if not whole:
        raise UsageError(f"{name} has {len(tokens)} tokens, which fill no window of {length}; give a longer text")
    if whole < count:
        log.warning("%s has %d tokens: %d windows of %d instead of %d", name, len(tokens), whole, length, count)
    taken = min(count, whole)
    # Even distances, rounded down, so that the last window ends within the text.
    starts = [index * (len(tokens) - inner) // max(1, taken - 1) if taken > 1 else 0 for index in range(taken)]
    return np.asarray([[*begin, *tokens[start : start + inner]] for start in starts], np.int64)
