"""A row by itself: what of its request is in the cache, what is shown, what is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.runtimes.generation.request import Request
from llmc.runtimes.generation.row import Row
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.sampling_params import SamplingParams

LOGITS = np.eye(4, dtype=np.float32)


def test_how_much_of_the_prompt_is_left() -> None:
    row = Row(2, Request([1, 2, 3], 4), 4)
    row.fed += 2
    assert (row.index, row.rest) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "needs", "looks"),
    [
        ({}, False, [False, True]),
        ({"sampling": SamplingParams(temperature=1)}, True, [False, True]),
        ({"sampling": SamplingParams(repetition_penalty=2)}, True, [False, True]),
        ({"forced": [1, 2, 3, 0]}, True, [False, True]),
        ({"watch": print}, True, [True, True]),
    ],
)
def test_when_the_host_must_see_logits(fields: dict[str, Any], needs: bool, looks: list[bool]) -> None:
    """Of a prompt's part only for a watcher, else where the prompt ends."""
    row = Row(0, Request([1, 2, 3], 4, **fields), 4)
    assert row.needs_logits == needs
    assert [row.looks(count) for count in (2, 3)] == looks


@pytest.mark.parametrize(
    ("fed", "tokens", "count", "rows", "position", "shown"),
    [
        (0, [], 3, 4, 0, [0, 1, 2]),
        (1, [], 2, 4, 1, [0, 1]),
        (0, [], 3, 1, 2, [0]),
        (3, [0], 1, 1, 3, [0]),
        (3, [0, 1], 1, 4, 4, [0]),
    ],
)
def test_a_watcher_sees_logits_and_their_position(
    fed: int, tokens: list[int], count: int, rows: int, position: int, shown: list[int]
) -> None:
    """Padding behind a row's tokens is not shown; one row of logits is that of the last token."""
    seen: list[Any] = []
    row = Row(0, Request([1, 2, 3], 4, watch=lambda *arguments: seen.append(arguments)), 4)
    row.fed, row.request.tokens = fed, tokens
    row.show(LOGITS[:rows], count)
    ((told, logits),) = seen
    assert (told, logits.argmax(axis=1).tolist()) == (position, shown)


def test_nobody_watches() -> None:
    Row(0, Request([1], 4), 4).show(LOGITS, 1)


def test_the_token_after_the_last_of_a_chunk() -> None:
    row = Row(0, Request([1], 4), 4)
    assert [row.choose(LOGITS, count) for count in (1, 3)] == [0, 2]
    assert row.choose(LOGITS[3:], 3) == 3


def test_what_was_said_is_penalised_and_what_is_known_is_taken() -> None:
    row = Row(0, Request([2], 4, SamplingParams(repetition_penalty=1e6)), 4)
    assert [row.choose(LOGITS + 1, 3) for _ in range(3)] == [0, 1, 3]
    known = Row(0, Request([2], 4, forced=[3, 1, 0, 2]), 4)
    assert known.choose(LOGITS, 1) == 3


def test_where_a_device_goes_on() -> None:
    settings = SamplingParams(temperature=1, seed=3)
    row = Row(1, Request([2], 9, settings, id=5), 4)
    row.request.tokens = [7, 8]
    assert row.state() == RowState(8, settings, 5, 2, 7)
