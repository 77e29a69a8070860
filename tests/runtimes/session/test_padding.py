"""Batches of unequal prompts, in every form that callers hold them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.session.padding import pad_prompts, to_right_padded

PAD = -5


@example([([], 0), ([], 3)])
@example([([1, 2], 0), ([3], 2)])
@example([([1], 4), ([2, 3, 4], 0)])
@given(st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=6), st.integers(0, 4)), min_size=1, max_size=5))
def test_rows_come_out_whole_wherever_their_padding_was(rows: list[tuple[list[int], int]]) -> None:
    width = max(len(row) + before for row, before in rows) + 1
    ids = np.full((len(rows), width), PAD)
    mask = np.zeros((len(rows), width), dtype=np.int32)
    for index, (row, before) in enumerate(rows):
        ids[index, before : before + len(row)] = row
        mask[index, before : before + len(row)] = 1
    tokens, lengths = to_right_padded(ids, mask)
    assert tokens.dtype == lengths.dtype == np.int64
    assert tokens.shape[1] == max(len(row) for row, _ in rows)
    assert [tokens[i, :n].tolist() for i, n in enumerate(lengths)] == [row for row, _ in rows]


def test_right_padding_is_not_copied() -> None:
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    tokens, _ = to_right_padded(ids, np.array([[1, 1, 0], [1, 0, 0]], dtype=np.bool_))
    assert tokens.shape == (2, 2)
    assert np.shares_memory(tokens, ids)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 2, 3], [1, 2, 3]], [[1, 1, 1], [1, 0, 1]], "row 1 of the attention mask has a hole"),
        ([[1, 2, 3], [1, 2, 3], [1, 2, 3]], [[0, 1, 1], [1, 1, 0], [1, 0, 1]], "row 2 of .* has a hole"),
        ([[1, 2]], [[1, 2]], "only 0 and 1"),
        ([[1, 2]], [[0, -1]], "only 0 and 1"),
        ([[1, 2]], [[0.0, 1.0]], "additive"),
        ([[1, 2]], [[0.0, -1e9]], "additive"),
        ([[1, 2]], [[1, 1, 1]], r"\[1, 2\] and attention_mask \[1, 3\]"),
        ([1, 2], [1, 1], "must both be"),
        ([[[1]], [[2]]], [[[1]], [[1]]], "must both be"),
        ([[0.5, 2.0]], [[1, 1]], "must be integers, not float64"),
        ([[True, False]], [[1, 1]], "must be integers, not bool"),
    ],
)
def test_what_is_refused(ids: list[object], mask: list[object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_right_padded(ids, mask)


def test_prompts_are_stacked_to_the_left() -> None:
    tokens, lengths = pad_prompts([[1, 2, 3], [4]], pad_id=9)
    assert tokens.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert lengths.tolist() == [3, 1]
    assert tokens.dtype == lengths.dtype == np.int64


@pytest.mark.parametrize(("prompts", "message"), [([], "no prompt"), ([[1], []], "prompt 1 is empty")])
def test_prompts_that_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pad_prompts(prompts)
