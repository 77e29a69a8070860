"""Batches of unequal prompts."""

from __future__ import annotations

import numpy as np

from llmc.runtimes.session.padding import pad_prompts


def test_prompts_are_stacked_to_the_left() -> None:
    tokens, lengths = pad_prompts([[1, 2, 3], [4]], pad_id=9)
    assert tokens.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert lengths.tolist() == [3, 1]
    assert tokens.dtype == lengths.dtype == np.int64
