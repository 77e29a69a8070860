"""Prompts of unequal lengths as one right-padded batch, which a session takes with a length per row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmc.runtimes.session.engine import Int64Array


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Int64Array, Int64Array]:
    """Stack prompts of unequal lengths.

    Args:
        prompts: One list of token ids a row; at least one.
        pad_id: What fills the columns after a row's end; any id of the vocabulary.

    Returns:
        ``tokens`` [batch, longest prompt] int64, C-contiguous, and ``lengths`` [batch] int64.
    """
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    tokens = np.full((len(prompts), int(lengths.max())), pad_id, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, lengths
