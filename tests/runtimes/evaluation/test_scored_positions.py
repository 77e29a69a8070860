"""Which positions of a window are scored, and on which tokens; a session whose losses tell positions apart."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.quality import evaluate, make_windows, perplexity, window_logits

from ..conftest import INFO

VOCAB = 40
Array = npt.NDArray[Any]


class Reciter:
    """Knows that token t is followed by t + 1, with a loss of ``loss`` times its position (from 1)."""

    rows = chooser = None

    def __init__(self, loss: float = 0.25, logits: str = "all", vocab: int = VOCAB) -> None:
        self.info: Any = replace(INFO, logits=logits, vocab_size=vocab, runtime="reciter")
        self.loss, self.position, self.capacity = loss, 0, 0
        self.calls: list[Any] = []

    def reset(self, batch: int, capacity: int) -> None:
        self.calls.append((batch, capacity))
        self.position, self.capacity = 0, capacity

    @property
    def lengths(self) -> Array:
        return np.array([self.position])

    def forward(self, ids: Array, lengths: Array) -> Any:
        assert lengths.tolist() == [ids.shape[1]]
        self.calls.append(ids.shape)
        assert self.position + ids.shape[1] <= self.capacity
        rows = np.stack([self.row(int(token)) for token in ids[0]])[None]
        return SimpleNamespace(host=lambda: rows if self.info.logits == "all" else rows[:, -1:])

    def row(self, token: int) -> Array:
        self.position += 1
        right = math.exp(-self.loss * self.position)
        others = np.full(self.info.vocab_size, math.log((1 - right) / (self.info.vocab_size - 1)), np.float32)
        others[(token + 1) % self.info.vocab_size] = math.log(right)
        return others


def text(length: int) -> Array:
    return np.arange(length) % VOCAB


def expected(positions: range, loss: float = 0.25) -> float:
    """Perplexity over positions of a window, from 0."""
    return math.exp(loss * sum(position + 1 for position in positions) / len(positions))


SCORED = [
    (8, None, range(4, 7)),
    (9, None, range(4, 8)),
    (3, None, range(1, 2)),
    (8, 0, range(7)),
    (8, 3, range(3, 7)),
    (8, 6, range(6, 7)),
]


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize(("length", "first", "scored"), SCORED)
def test_from_the_first_scored_position_to_the_last_that_has_a_follower(
    length: int, first: int | None, scored: range, chunk: int
) -> None:
    windows = make_windows(text(2 * length), length)
    found = perplexity(Reciter(), windows, first=first, chunk=chunk)  # type: ignore[arg-type]
    assert found.value == pytest.approx(expected(scored), rel=1e-5)
    quality = evaluate(Reciter(), Reciter(0.5), windows, first=first, chunk=chunk)  # type: ignore[arg-type]
    assert quality.positions == 2 * len(scored)
    assert quality.reference_perplexity is not None
    assert quality.candidate_perplexity is not None
    assert quality.reference_perplexity.value == pytest.approx(expected(scored), rel=1e-5)
    assert quality.candidate_perplexity.value == pytest.approx(expected(scored, 0.5), rel=1e-5)


@pytest.mark.parametrize(("length", "first"), [(2, None), (8, 7), (8, 8), (8, -1)])
def test_windows_without_a_position_to_score(length: int, first: int | None) -> None:
    windows = make_windows(text(length), length)
    with pytest.raises(UsageError, match=f"window of {length} tokens: no position from"):
        perplexity(Reciter(), windows, first=first)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"window of {length} tokens: no position from"):
        evaluate(Reciter(), Reciter(), windows, first=first)  # type: ignore[arg-type]


def test_windows_lie_one_behind_the_other() -> None:
    cut = [window.tolist() for window in make_windows(list(range(11)), 3)]
    assert cut == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [window.tolist() for window in make_windows(range(3), 2)] == [[0, 1]]  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (0, 0), (1, 1), (3, 3), (9, 3)])
def test_at_most_so_many_windows(limit: int | None, count: int) -> None:
    assert len(make_windows(text(11), 3, limit=limit)) == count


@pytest.mark.parametrize("length", [12, 1, 0])
def test_lengths_of_which_there_is_no_window(length: int) -> None:
    with pytest.raises(UsageError, match=f"11 tokens make no window of {length}"):
        make_windows(text(11), length)


def test_each_window_begins_on_an_empty_cache_in_chunks() -> None:
    reference, candidate = Reciter(), Reciter()
    evaluate(reference, candidate, make_windows(text(16), 8), chunk=3)  # type: ignore[arg-type]
    assert reference.calls == candidate.calls == [(1, 8), (1, 3), (1, 3), (1, 2)] * 2


def test_a_session_with_logits_of_the_last_position_is_stepped_and_no_other() -> None:
    every, last = Reciter(), Reciter(logits="last")
    quality = evaluate(every, last, make_windows(text(4), 4), first=0, stepping=True)  # type: ignore[arg-type]
    assert every.calls == [(1, 4), (1, 4)]
    assert last.calls == [(1, 4), *[(1, 1)] * 4]
    assert (quality.max_kl, quality.max_abs_error) == (0, 0)
    with pytest.raises(UsageError, match="the reciter engine gives logits of the last position only"):
        perplexity(last, make_windows(text(4), 4))  # type: ignore[arg-type]


def test_logits_come_with_the_position_of_their_first_row() -> None:
    found = list(window_logits(Reciter(), text(7), chunk=3))  # type: ignore[arg-type]
    assert [(position, len(rows)) for position, rows in found] == [(0, 3), (3, 3), (6, 1)]
    assert [int(row.argmax()) for _, rows in found[:1] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("vocab", [VOCAB - 1, VOCAB + 1])
def test_another_vocabulary_is_another_model(vocab: int) -> None:
    with pytest.raises(UsageError, match=f"the reference has 40 tokens, the candidate {vocab}"):
        evaluate(Reciter(), Reciter(vocab=vocab), [text(8)])  # type: ignore[arg-type]
