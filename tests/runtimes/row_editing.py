"""Rows released, cut and copied while others go on, each compared with a row that was fed its tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.session.engine import FloatArray, Session

Expected = Callable[[list[int]], FloatArray]
"""A row's tokens -> the logits after the last of them, [vocab_size]."""


class EditedRows:
    """A session and what its rows should hold."""

    def __init__(self, session: Session, expected: Expected, tolerance: float, rows: int = 3) -> None:
        self.session, self.expected, self.tolerance = session, expected, tolerance
        assert session.rows is not None
        self.rows = session.rows
        self.held: list[list[int]] = [[] for _ in range(rows)]
        self.random = np.random.default_rng(5)
        session.reset(rows, 48)

    def draw(self, *counts: int) -> list[list[int]]:
        """So many random tokens for each row."""
        return [self.random.integers(3, 160, count).tolist() for count in counts]

    def feed(self, *counts: int) -> None:
        """A chunk of so many tokens in each row; each that has some says what it would say alone."""
        new = self.draw(*counts)
        ids = np.full((len(new), max(counts)), 7, np.int64)
        for row, tokens in zip(ids, new, strict=True):
            row[: len(tokens)] = tokens
        logits = self.session.forward(ids, np.array(counts, np.int64)).host()
        self.held = [before + tokens for before, tokens in zip(self.held, new, strict=True)]
        for row, (tokens, count) in enumerate(zip(self.held, counts, strict=True)):
            if count:
                given = logits[row, count - 1 if logits.shape[1] > 1 else 0]
                np.testing.assert_allclose(given, self.expected(tokens), rtol=0, atol=self.tolerance)
        self.check_lengths()

    def release(self, row: int) -> None:
        self.rows.release(row)
        self.held[row] = []
        self.check_lengths()

    def truncate(self, row: int, length: int) -> None:
        self.rows.truncate(row, length)
        self.held[row] = self.held[row][:length]
        self.check_lengths()

    def copy(self, source: int, target: int, length: int) -> None:
        self.rows.copy_prefix(source, target, length)
        self.held[target] = self.held[source][:length]
        self.check_lengths()

    def check_lengths(self) -> None:
        assert self.session.lengths.tolist() == [len(row) for row in self.held]


def check_rows_come_and_go(session: Session, expected: Expected, tolerance: float) -> None:
    """The longest row, the shortest and all are released; longer prompts take their place while others decode."""
    edited = EditedRows(session, expected, tolerance)
    edited.feed(9, 4, 14)
    edited.feed(1, 1, 1)
    edited.release(2)
    edited.feed(1, 1, 0)
    edited.feed(0, 1, 23)
    edited.feed(1, 0, 1)
    edited.release(1)
    edited.feed(1, 1, 1)
    edited.feed(2, 5, 0)
    edited.release(0)
    edited.release(1)
    edited.feed(0, 0, 1)
    edited.feed(12, 0, 0)
    edited.copy(0, 1, 12)
    edited.feed(1, 1, 1)
    for row in range(3):
        edited.release(row)
    edited.feed(3, 0, 6)
    edited.feed(1, 1, 1)


def check_many_requests(session: Session, expected: Expected, tolerance: float) -> None:
    """One after the other in each row, many times what the cache holds."""
    edited = EditedRows(session, expected, tolerance)
    for request in range(18):
        row = request % 3
        edited.release(row)
        edited.feed(*(9 + request % 5 if index == row else int(bool(held)) for index, held in enumerate(edited.held)))
        edited.feed(*(int(bool(held)) for held in edited.held))
    for row in range(3):
        edited.release(row)
    edited.feed(30, 40, 0)
    edited.feed(1, 1, 0)


def check_rows_go_back(session: Session, expected: Expected, tolerance: float) -> None:
    """Rows are cut, the longest too, and take over a prefix of another row, longer or shorter than their own."""
    edited = EditedRows(session, expected, tolerance)
    edited.feed(16, 5, 11)
    edited.truncate(0, 6)
    edited.feed(1, 1, 1)
    edited.truncate(2, 11)
    edited.truncate(2, 12 - 1)
    edited.feed(0, 4, 2)
    edited.copy(2, 1, 9)
    edited.feed(1, 1, 1)
    edited.copy(1, 0, 10)
    edited.feed(3, 1, 0)
    edited.truncate(1, 1)
    edited.feed(1, 2, 1)
    edited.truncate(0, 0)
    edited.feed(17, 1, 1)
    for source, length in ((1, 40), (0, -1)):
        with pytest.raises(EngineError, match=f"row {source} holds .* tokens, of which it cannot keep {length}"):
            edited.rows.copy_prefix(source, 2, length)
    edited.check_lengths()


def check_states_do_not_go_back(session: Session, held: Sequence[int] = (4, 6)) -> None:
    """A state is kept whole or dropped."""
    assert session.rows is not None
    session.reset(len(held), 16)
    session.forward(np.ones((len(held), max(held)), np.int64), np.array(held, np.int64))
    with pytest.raises(EngineError, match="row 1 keeps a recurrent state of 6 tokens, which cannot go back to 5"):
        session.rows.truncate(1, 5)
    assert session.lengths.tolist() == list(held)
