"""Replies: text row by row at each step, why rows end, how fast they came; conversations."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.generation.text_engine import Reply, Speed, TextEngine
from llmc.runtimes.session.sampling_params import SamplingParams

from ...generation import begin, generate
from .pieces import Pieces, cut


def test_a_reply_ends_at_stop_strings_and_end_tokens(byte_level: Any, fake_session: Any) -> None:
    tokenizer = TextTokenizer(byte_level)
    prompts, size = [[90], [91, 92], [93]], byte_level.get_vocab_size()
    session = fake_session(vocab_size=size)
    tokens = generate(session, prompts, max_tokens=20).tokens
    free = [tokenizer.decode(row) for row in tokens]
    stop, end = tokenizer.decode(tokens[0][4:6]), tokens[1][3]
    session = fake_session(vocab_size=size)
    made = begin(session, prompts, max_tokens=20, eos_ids=[end])
    reply = Reply(made.batch, made.requests, tokenizer, [stop])
    texts = ["".join(row) for row in zip(*reply, strict=True)]
    assert texts == reply.texts
    assert texts[0] == cut(free[0], [stop])
    assert texts[1] == cut(tokenizer.decode(tokens[1][: tokens[1].index(end)]), [stop])
    assert reply.finished[:2] == ("stop", "eos")
    assert session.lengths[0] < 1 + 20


@pytest.fixture
def reply_of(fake_session: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reply]:
    """A reply of these tokens, [steps][batch]."""

    def make(tokenizer: Pieces, stop: list[str], *steps: list[int], **options: Any) -> Reply:
        session, answers = fake_session(), iter(steps)
        monkeypatch.setattr(session, "forward", lambda *_: SimpleNamespace(argmax=lambda: np.array(next(answers))))
        made = begin(session, [[1]] * len(steps[0]), max_tokens=len(steps), **options)
        return Reply(made.batch, made.requests, tokenizer, stop)

    return make


def test_the_steps_of_a_generation_as_text(reply_of: Callable[..., Reply]) -> None:
    """What a row held back comes with its last token; the step in which a stop string comes says so."""
    tokenizer = Pieces("a", "x sto", "p y", "z st", "</s>", "s")
    reply = reply_of(tokenizer, ["stop", "st!"], [0, 0, 0], [1, 5, 5], [2, 0, 4], [0, 3, 0], eos_ids=[4])
    steps = [(texts, reply.finished) for texts in reply]
    assert steps == [
        (("a", "a", "a"), (None, None, None)),
        (("x ", "", ""), (None, None, None)),
        (("", "sa", "s"), ("stop", None, "eos")),
        (("", "z st", ""), ("stop", "length", "eos")),
    ]


def test_a_stop_string_in_the_last_token_is_the_reason(reply_of: Callable[..., Reply]) -> None:
    reply = reply_of(Pieces("a", "stop"), ["stop"], [0], [1])
    assert list(reply) == [("a",), ("",)]
    assert reply.finished == ("stop",)


def test_a_newer_reply_ends_the_one_before(fake_session: Any) -> None:
    """Also one that is not read yet: the engine has one cache."""
    engine = TextEngine(fake_session(), Pieces(*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    old = iter(engine.reply([[1]], SamplingParams(), (), 3))
    next(old)
    new = engine.reply([[2]], SamplingParams(), (), 3)
    with pytest.raises(EngineError, match="ended by a newer one"):
        next(old)
    assert len(list(new)) == 3
    assert new.speed.tokens == 3


def test_speed_is_that_of_tokens_after_each_rows_first(fake_session: Any) -> None:
    """Two seconds to the first tokens, then three and one more in four."""
    made = begin(fake_session(), [[1], [2]], max_tokens=9)
    reply = Reply(made.batch, made.requests, Pieces(), ())
    assert reply.speed == Speed(0, None, None)
    for request, seconds in zip(made.requests, ([0, 2], [0, 1]), strict=True):
        request.timings.ticks = [second * 10**9 for second in seconds]
        request.tokens = [1]
    assert reply.speed == Speed(2, 2.0, None)
    for request, seconds in zip(made.requests, ([0, 2, 3, 4, 6], [0, 2, 3]), strict=True):
        request.timings.ticks = [second * 10**9 for second in seconds]
        request.tokens = [1] * (len(seconds) - 1)
    assert reply.speed == Speed(6, 2.0, 1.0)


def test_speed_in_words() -> None:
    assert str(Speed(96, 0.0314, 85.21)) == "TTFT 31 ms, 96 tokens, 85.2 tok/s"
    assert str(Speed(0, None, None)) == "0 tokens"


@pytest.mark.parametrize(("kind", "rows"), [("all", [0, 1, 2, 3, 4, 5, 6]), ("last", [6])])
def test_logits_of_a_prompt_that_goes_in_pieces(
    fake_session: Any, byte_level: Any, kind: str, rows: list[int]
) -> None:
    """An engine for chunks of 3; the array is the caller's, and a reply that runs is at its end."""
    tokenizer, prompt = TextTokenizer(byte_level), [5, 9, 2, 7, 5, 1, 8]
    engine = TextEngine(fake_session(vocab_size=400, logits=kind, profiles=((1, 3),)), tokenizer)
    reply = engine.reply([prompt], SamplingParams(), (), 4)
    next(iter(reply))
    logits = engine.logits(prompt)
    whole = fake_session(vocab_size=400, logits="all")
    whole.reset(1, len(prompt))
    expected = whole.forward(np.array([prompt], np.int64)).host()[0]
    np.testing.assert_array_equal(logits, expected[rows])
    engine.logits([3])
    np.testing.assert_array_equal(logits, expected[rows])
    with pytest.raises(EngineError, match="ended by a newer one"):
        list(reply)
