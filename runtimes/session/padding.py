"""Batches of unequal prompts: in comes a padded batch or a list of prompts, out comes a right-padded batch.

A :class:`Session` takes rows that start at column 0 and a length per row. Callers hold batches
in other forms (left-padded, as transformers generates with; plain lists of tokens); this module is the one place
that turns them round.

    mask 0 0 1 1 1        tokens a b c .      length 3
         1 1 1 1 0   ──▶         d e f g             4
         0 0 0 0 1               h . . .             1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.session.engine import Int64Array


def to_right_padded(input_ids: npt.ArrayLike, attention_mask: npt.ArrayLike) -> tuple[Int64Array, Int64Array]:
    """Move every row's tokens to the front and count them.

    Args:
        input_ids: [batch, seq] integers; what stands under a mask of 0 does not matter.
        attention_mask: [batch, seq] of 0 and 1 (any integer or boolean dtype). The ones of a row stand together:
            left padding, right padding or both; a row may be all zeros (length 0).

    Returns:
        ``tokens`` [batch, longest row] int64, a view of ``input_ids`` where that is right-padded int64 already, and
        ``lengths`` [batch] int64. Columns at or after a row's length hold whatever the padding held.

    Raises:
        UsageError: the shapes disagree, the mask holds something else than 0 and 1, or a row's mask has a hole.
    """
    tokens = np.asarray(input_ids)
    mask = np.asarray(attention_mask)
    _check_batch(tokens, mask)
    tokens = tokens.astype(np.int64, copy=False)
    valid = mask.astype(np.bool_, copy=False)
    lengths = valid.sum(axis=1, dtype=np.int64)
    longest = int(lengths.max(initial=0))
    if longest == 0:
        return tokens[:, :0], lengths
    starts = valid.argmax(axis=1)
    columns = np.arange(tokens.shape[1])
    expected = (columns >= starts[:, None]) & (columns < (starts + lengths)[:, None])
    broken = np.flatnonzero((expected != valid).any(axis=1))
    if broken.size:
        raise UsageError(
            f"row {int(broken[0])} of the attention mask has a hole: its ones must stand together, "
            "with padding only before or after them"
        )
    if not starts.any():
        return tokens[:, :longest], lengths
    source = np.minimum(starts[:, None] + columns[:longest], tokens.shape[1] - 1)
    return np.take_along_axis(tokens, source, axis=1), lengths


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Int64Array, Int64Array]:
    """Stack prompts of unequal lengths.

    Args:
        prompts: One list of token ids a row.
        pad_id: What fills the columns after a row's end; any id of the vocabulary.

    Returns:
        ``tokens`` [batch, longest prompt] int64, C-contiguous, and ``lengths`` [batch] int64.

    Raises:
        UsageError: there is no prompt, or one of them is empty.
    """
    if not prompts:
        raise UsageError("there is no prompt: give at least one")
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise UsageError(
            f"prompt {int(empty[0])} is empty: give it at least one token, for example the tokenizer's bos token"
        )
    tokens = np.full((len(prompts), int(lengths.max())), pad_id, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, lengths


def _check_batch(tokens: npt.NDArray[np.generic], mask: npt.NDArray[np.generic]) -> None:
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise UsageError(
            f"input_ids {list(tokens.shape)} and attention_mask {list(mask.shape)} must both be [batch, sequence]"
        )
    if tokens.dtype.kind not in "iu":
        raise UsageError(f"input_ids must be integers, not {tokens.dtype}")
    if mask.dtype.kind not in "iub" or bool(((mask != 0) & (mask != 1)).any()):
        raise UsageError("the attention mask must hold only 0 and 1; additive (float) masks are not accepted")
