"""Continuations scored and written by a session: sums by hand, what is too long, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.continuations import ContinuationScorer
from llmc.runtimes.evaluation.perplexity import log_softmax
from llmc.runtimes.generation.text_engine import TextEngine
from llmc.runtimes.session.sampling_params import SamplingParams

Make = Callable[..., Any]


def scorer(session: Any, max_length: int = 64) -> ContinuationScorer:
    tokenizer: Any = SimpleNamespace(encode=lambda text: [int(word) for word in text.split()])
    return ContinuationScorer(TextEngine(session, tokenizer), max_length)


def by_hand(session: Any, tokens: list[int], scored: int) -> tuple[float, list[int]]:
    """Sum over the last ``scored`` tokens, and the greedy ones in their places."""
    session.reset(1, len(tokens))
    logits = session.forward(np.array([tokens])).host()[0][-1 - scored : -1]
    return float(log_softmax(logits)[np.arange(scored), tokens[-scored:]].sum()), logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("kind", ["all", "last"])
def test_a_continuation_is_scored_after_its_context(fake_session: Make, kind: str) -> None:
    context, continuation = [3, 1, 4, 1], [5, 9, 2]
    total, greedy = scorer(fake_session(logits=kind)).log_likelihood(context, continuation)
    assert total == pytest.approx(by_hand(fake_session(), context + continuation, 3)[0], rel=1e-6)
    assert not greedy


def test_the_greedy_continuation_is_told(fake_session: Make) -> None:
    tokens = [3, 1, 4]
    for _ in range(3):
        tokens.append(by_hand(fake_session(), [*tokens, 0], 1)[1][0])
    assert scorer(fake_session()).log_likelihood(tokens[:3], tokens[3:])[1]
    tokens[4] = (tokens[4] + 1) % 50
    assert not scorer(fake_session()).log_likelihood(tokens[:3], tokens[3:])[1]


def test_what_is_too_long_loses_its_beginning(fake_session: Make) -> None:
    context, continuation = list(range(20)), [7, 8, 9]
    total, _ = scorer(fake_session(), 10).log_likelihood(context, continuation)
    assert total == pytest.approx(by_hand(fake_session(), [*context[-7:], *continuation], 3)[0], rel=1e-6)
    # Of a continuation that fills the room, the first token is context.
    total, _ = scorer(fake_session(), 3).log_likelihood(context, continuation)
    assert total == pytest.approx(by_hand(fake_session(), continuation, 2)[0], rel=1e-6)


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], [])])
def test_nothing_cannot_be_scored(fake_session: Make, context: list[int], continuation: list[int]) -> None:
    with pytest.raises(UsageError, match="need a token at least"):
        scorer(fake_session()).log_likelihood(context, continuation)


def test_no_room_for_a_prompt(fake_session: Make) -> None:
    with pytest.raises(UsageError, match="64 new tokens leave no room for a prompt in 64"):
        scorer(fake_session()).write("1 2", (), 64, SamplingParams())
