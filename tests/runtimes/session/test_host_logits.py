"""Logits in host memory: what is viewed, and in which position a row's most likely token is looked for."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.runtimes.session.host_logits import HostLogits

LOGITS = np.array(
    [
        [[0.0, 1.0, 5.0], [4.0, 0.0, 1.0], [9.0, 1.0, 0.0]],
        [[0.0, 7.0, 1.0], [2.0, 3.0, 8.0], [1.0, 0.0, 0.5]],
        [[1.0, 2.0, 0.0], [6.0, 2.0, 1.0], [0.0, 1.0, 3.0]],
    ],
    np.float32,
)
"""[batch, positions, vocab_size]; the most likely ones are 2 0 0, 1 2 0 and 1 0 2."""


def best(logits: np.ndarray, *last: int) -> list[int]:
    found = HostLogits(logits, np.array(last, np.int64)).argmax()
    assert found.dtype == np.int64
    return found.tolist()


def test_each_row_is_read_at_its_own_last_position() -> None:
    assert best(LOGITS, 0, 1, 2) == [2, 2, 2]
    assert best(LOGITS, 1, 0, 0) == [0, 1, 1]
    assert best(LOGITS, 2, 2, 1) == [0, 0, 0]


def test_a_row_without_a_token_is_read_at_its_first_position() -> None:
    assert best(LOGITS, -1, 1, -1) == [2, 2, 1]


def test_logits_of_one_position_are_read_there_whatever_the_chunk() -> None:
    assert best(LOGITS[:, :1], 5, 0, 3) == [2, 1, 1]
    assert best(LOGITS[:1, :1], 6) == [2]


def test_of_equal_logits_the_lowest_id_is_the_most_likely() -> None:
    assert best(np.array([[[1.0, 3.0, 3.0]], [[2.0, 2.0, 2.0]]], np.float32), 0, 0) == [1, 0]


def test_every_row_has_a_last_position() -> None:
    with pytest.raises(ValueError, match="shorter"):
        best(LOGITS, 0, 1)


def test_the_array_is_viewed() -> None:
    assert HostLogits(LOGITS, np.zeros(3, np.int64)).host() is LOGITS


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("positions", [1, 3])
def test_a_row_that_is_not_finite_has_no_most_likely_token(broken: float, positions: int) -> None:
    logits = LOGITS[:, :positions].copy()
    logits[1, 0, 2] = broken
    assert best(logits, 0, 0, 0) == [2, -1, 1]
    if positions > 1:  # what is not finite elsewhere is not asked for
        assert best(logits, 0, 1, 0) == [2, 2, 1]


def test_a_token_that_is_never_said_is_no_fault_but_a_row_without_any_other_is() -> None:
    logits = np.array([[[-np.inf, 1.0, 0.0]], [[-np.inf, -np.inf, -np.inf]]], np.float32)
    assert best(logits, 0, 0) == [1, -1]
