"""Batches of unequal prompts."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.session.padding import pad_prompts


def test_prompts_are_stacked_to_the_left() -> None:
    tokens, lengths = pad_prompts([[1, 2, 3], [4]], pad_id=9)
    assert tokens.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert lengths.tolist() == [3, 1]
    assert tokens.dtype == lengths.dtype == np.int64


@pytest.mark.parametrize(("prompts", "message"), [([], "no prompt"), ([[1], []], "prompt 1 is empty")])
def test_prompts_that_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pad_prompts(prompts)
