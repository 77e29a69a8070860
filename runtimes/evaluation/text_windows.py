"""A text cut into the windows that are evaluated, as ``llama-perplexity`` cuts it.

In: texts and a tokenizer. Out: token ids [windows, length].

    [BOS] text ─▶ tokens ─▶ │ 512 │ 512 │ 512 │ what is left over is dropped
                              BOS   BOS   BOS      in the place of each window's first token, if the tokenizer
                                                   begins texts with one

The first token of a window is context alone, so the text loses nothing that is scored. (llama.cpp,
``tools/perplexity/perplexity.cpp``, ``perplexity`` and ``kl_divergence``.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.perplexity import Tokens
from llmc.runtimes.evaluation.quality import make_windows
from llmc.runtimes.generation.text import TextTokenizer

SEPARATOR = "\n\n"
"""Between documents."""


def text_windows(tokenizer: TextTokenizer, texts: Sequence[str], length: int, *, tokens: int | None = None) -> Tokens:
    """Windows of ``length`` tokens, [windows, length] int64.

    Args:
        tokenizer: The reference's.
        texts: Documents; they are joined by an empty line.
        length: Tokens of a window, at least 4.
        tokens: Most tokens of the text; None: all. A part of a window is left out.

    Raises:
        UsageError: a window that is too short, or a text that is shorter than one window.
    """
    if length < 4:
        raise UsageError(f"a window of {length} tokens scores next to nothing; give --window 4 at least")
    bos = leading_token(tokenizer)
    ids = [] if bos is None else [bos]
    # llama-perplexity takes the line end that closes a file as no part of the text.
    ids += tokenizer.encode(SEPARATOR.join(texts).removesuffix("\n"), add_special_tokens=False)
    windows = np.stack(make_windows(ids if tokens is None else ids[:tokens], length))
    if bos is not None:
        windows[:, 0] = bos
    return windows


def leading_token(tokenizer: TextTokenizer) -> int | None:
    """The token with which a tokenizer begins every text; None where it adds none."""
    plain, special = (tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
    return special[0] if len(special) > len(plain) and special[1 : len(plain) + 1] == plain else None
