"""Prompts together on one session: the tokens of each step, the whole, and who has the session."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.generation import Generator
from llmc.runtimes.generation.generator import NO_TOKEN
from llmc.runtimes.session.sampling_params import SamplingParams

from ... import generation

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [40], [11, 12, 13, 14], [7, 7]]


def test_its_rows_are_those_of_a_batch(fake_session: Any) -> None:
    whole = generation.generate(fake_session(), PROMPTS, max_tokens=12)
    result = Generator(fake_session()).stream(PROMPTS, max_tokens=12).run()
    assert (result.tokens, result.finished) == (whole.tokens, whole.finished)
    sampled = SamplingParams(temperature=1.5, seed=5)
    options: dict[str, Any] = {"max_tokens": 12, "prefill_chunk": 2}
    other = generation.generate(fake_session(), PROMPTS, sampled, ids=[3, 1, 0, 2], **options)
    stream = Generator(fake_session()).stream(PROMPTS, sampled, row_ids=[3, 1, 0, 2], **options)
    assert stream.run().tokens == other.tokens != whole.tokens


def test_each_step_gives_a_token_of_every_row_that_goes_on(fake_session: Any) -> None:
    free = generation.generate(fake_session(), PROMPTS, max_tokens=6).tokens
    end = free[2][2]
    stream = Generator(fake_session()).stream(PROMPTS, max_tokens=6, eos_ids=[end])
    steps = list(stream)
    assert [step.step for step in steps] == list(range(len(steps)))
    for row, tokens in enumerate(stream.result().tokens):
        assert [int(step.tokens[row]) for step in steps] == [*tokens, *[NO_TOKEN] * (len(steps) - len(tokens))]
        assert [step.finished[row] for step in steps].index(stream.result().finished[row]) == len(tokens) - 1
    assert stream.result().tokens[2] == free[2][: free[2].index(end) + 1]
    assert stream.result().finished[2] == "eos"
    with pytest.raises(StopIteration):
        next(stream)


def test_a_step_ends_with_a_token(fake_session: Any) -> None:
    """Calls that hold a part of a prompt alone give none."""
    session = fake_session()
    first = next(Generator(session).stream([[1, 2, 3, 4, 5]], max_tokens=2, prefill_chunk=2))
    assert (first.step, len(session.calls)) == (0, 3)
    assert first.tokens[0] != NO_TOKEN


def test_a_row_ends_at_a_sequence_or_where_its_caller_says(fake_session: Any) -> None:
    free = generation.generate(fake_session(), PROMPTS, max_tokens=6).tokens
    result = Generator(fake_session()).stream(PROMPTS, max_tokens=6, stop_sequences=[free[0][1:3]]).run()
    assert (result.tokens[0], result.finished[0]) == (free[0][:3], "stop")
    stream = Generator(fake_session()).stream(PROMPTS, max_tokens=6)
    next(stream)
    stream.finish(1)
    assert stream.run().tokens == (free[0], free[1][:1], *free[2:])
    assert stream.result().finished == ("length", "stop", "length", "length")


def test_a_new_stream_ends_the_one_before(fake_session: Any) -> None:
    generator = Generator(fake_session())
    first = generator.stream([[1, 2]], max_tokens=5)
    next(first)
    with pytest.raises(UsageError, match="max-tokens is 0"):
        generator.stream([[1, 2]], max_tokens=0)
    next(first)  # what was refused took nothing
    second = generator.stream([[3]], max_tokens=5)
    with pytest.raises(EngineError, match="ended by a newer one on the same session"):
        next(first)
    with pytest.raises(EngineError, match="ended by a newer one on the same session"):
        first.run()
    assert second.run().tokens == generation.generate(fake_session(), [[3]], max_tokens=5).tokens
    assert len(first.result().tokens[0]) == 2


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], [2]], {"row_ids": [1]}, "1 row ids for 2 prompts: give one per prompt"),
        ([], {}, "there is no prompt"),
        ([[1], [50]], {}, "prompt 1 holds token 50"),
        ([[1]], {"stop_sequences": [[]]}, "stop sequence is empty"),
    ],
)
def test_what_is_refused(fake_session: Any, prompts: list[list[int]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Generator(fake_session()).stream(prompts, **{"max_tokens": 3, **options})
