"""A request by itself: what it may ask, and which token is its last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.request import Request


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": [], "id": 3}, "prompt 3 is empty: give it at least one token"),
        ({"max_tokens": 0}, "max-tokens is 0: it must be at least 1"),
        ({"max_tokens": -1, "watch": print}, "max-tokens is -1"),
        ({"stop_sequences": ((1,), ())}, "a stop sequence is empty"),
        ({"forced": [1, 2, 3]}, "3 tokens are known of 4; give them all, or none"),
    ],
)
def test_what_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**{"prompt": [1, 2], "max_tokens": 4, **fields})


def test_a_prompt_may_be_watched_alone() -> None:
    assert Request([1, 2], 0, watch=print).room == 2


def test_a_prompt_is_an_array_whatever_it_was() -> None:
    for prompt in ([1, 2], (1, 2), np.array([1, 2], np.int32)):
        ids = Request(prompt, 1).ids  # type: ignore[arg-type]
        assert (ids.dtype, ids.tolist()) == (np.int64, [1, 2])


def taken(request: Request, *tokens: int) -> list[str | None]:
    return [request.take(token, moment) for moment, token in enumerate(tokens)]


def test_the_last_token_says_why() -> None:
    assert taken(Request([9], 3), 1, 2, 3) == [None, None, "length"]
    assert taken(Request([9], 3, eos_ids=frozenset([2, 3])), 1, 2) == [None, "eos"]
    assert taken(Request([9], 1, eos_ids=frozenset([1]), stop_sequences=((1,),)), 1) == ["eos"]
    assert taken(Request([9], 2, stop_sequences=((5, 6), (1, 2))), 1, 2) == [None, "stop"]


def test_a_stop_sequence_is_of_new_tokens_alone() -> None:
    assert taken(Request([1], 9, stop_sequences=((1, 2),)), 2, 1, 2) == [None, None, "stop"]


def test_tokens_and_their_moments_are_kept() -> None:
    request = Request([9], 3)
    taken(request, 7, 8)
    assert (request.tokens, request.timings.ticks, request.finished) == ([7, 8], [0, 1], None)


@pytest.mark.parametrize("token", [-1, 50])
def test_a_token_outside_the_vocabulary(token: int) -> None:
    request = Request([0, 49, token], 1, id=2)
    with pytest.raises(UsageError, match=f"prompt 2 holds token {token} at position 2, outside the engine's voc"):
        request.check_vocabulary(50)
    Request([0, 49], 1).check_vocabulary(50)


def test_room() -> None:
    Request([1] * 6, 2).check_room(8, "cache")
    with pytest.raises(UsageError, match="6 tokens and 2 new ones exceed the cache of 7; ask for at most 1 n"):
        Request([1] * 6, 2).check_room(7, "cache")
    with pytest.raises(UsageError, match="of 6; shorten the prompt below 6 tokens"):
        Request([1] * 6, 2).check_room(6, "cache")
