"""Which logits are scored, whole or step by step; greedy continuations and where they part."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.evaluation import scored_rows
from llmc.runtimes.evaluation.scored_rows import (
    ScoredRows,
    equal_greedy_tokens,
    greedy_continuations,
    require_finite,
    session_source,
)

Make = Callable[..., Any]


def windows(count: int = 5, length: int = 12) -> Any:
    return np.random.default_rng(4).integers(0, 50, (count, length))


def collected(session: Any, first: int, *, chunk: int = 128) -> dict[tuple[int, int], Any]:
    """Logits by window and scored position."""
    found: dict[tuple[int, int], Any] = {}
    for rows in session_source(session, chunk=chunk)(windows(), first):
        for index, row in enumerate(rows.logits):
            assert (rows.window, rows.start + index) not in found
            found[rows.window, rows.start + index] = row.copy()
    return found


def wanted(session: Any, first: int) -> dict[tuple[int, int], Any]:
    """From one forward of each window."""
    found: dict[tuple[int, int], Any] = {}
    for number, window in enumerate(windows()):
        session.reset(1, len(window))
        logits = session.forward(window[None]).host()[0]
        found |= {(number, position - first): logits[position] for position in range(first, len(window) - 1)}
    return found


@pytest.mark.parametrize("kind", ["all", "last"])
@pytest.mark.parametrize("chunk", [1, 4, 128])
@pytest.mark.parametrize("first", [0, 3, 10])
def test_every_scored_position_comes_once_with_its_own_logits(
    fake_session: Make, kind: str, chunk: int, first: int
) -> None:
    found = collected(fake_session(logits=kind), first, chunk=chunk)
    expected = wanted(fake_session(), first)
    assert found.keys() == expected.keys()
    for place, row in expected.items():
        np.testing.assert_allclose(found[place], row, rtol=1e-6, err_msg=str(place))


def test_steps_run_many_windows_at_a_time(fake_session: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored_rows, "ROWS_AT_A_TIME", 3)
    session = fake_session(logits="last")
    collected(session, 6)
    # The context at once, then a step for each of the other positions.
    shapes = [shape for shape, _ in session.calls]
    assert shapes == [(3, 7), *[(3, 1)] * 4, (2, 7), *[(2, 1)] * 4]


def test_what_cannot_be_scored_is_refused(fake_session: Make) -> None:
    with pytest.raises(UsageError, match="no position from 11 on"):
        list(session_source(fake_session())(windows(), 11))
    with pytest.raises(UsageError, match="context of 8 is shorter than a window of 12"):
        list(session_source(fake_session(max_context=8))(windows(), 6))


def test_greedy_tokens_are_fed_back(fake: ModuleType) -> None:
    """This model thinks that t is followed by t + 1."""
    session = fake.FakeSession(logits="all", prefill_ms=0, step_ms=0)
    prompts = np.array([[3, 4, 5], [9, 1, 30]])
    np.testing.assert_array_equal(greedy_continuations(session, prompts, 4), [[6, 7, 8, 9], [31, 0, 1, 2]])


def test_where_a_source_parts_from_a_continuation() -> None:
    prompts, continuations = np.zeros((4, 3), int), np.array([[5, 6, 7]] * 4)
    says = [[5, 6, 7], [5, 6, 0], [5, 0, 7], [0, 6, 7]]
    asked = []

    def source(windows: Any, first: int) -> Any:
        asked.append((windows.tolist(), first))
        for index, tokens in enumerate(says):
            logits = np.eye(8, dtype=np.float32)[tokens]
            yield ScoredRows(index, 0, logits[:2])
            yield ScoredRows(index, 2, logits[2:])

    assert equal_greedy_tokens(source, prompts, continuations, "its") == [3, 2, 1, 0]
    assert asked == [([[0, 0, 0, 5, 6, 7]] * 4, 2)]


@pytest.mark.parametrize("kind", ["all", "last"])
def test_a_session_writes_what_it_writes(fake_session: Make, kind: str) -> None:
    prompts = windows(3, 5)
    tokens = greedy_continuations(fake_session(), prompts, 6)
    source = session_source(fake_session(logits=kind))
    assert equal_greedy_tokens(source, prompts, tokens, "its") == [6, 6, 6]
    tokens[1, 4] = (tokens[1, 4] + 1) % 50
    assert equal_greedy_tokens(source, prompts, tokens, "its") == [6, 4, 6]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_logit_that_is_not_finite_is_named(bad: float) -> None:
    logits = np.zeros((3, 8), np.float32)
    require_finite(ScoredRows(4, 2, logits), 6, "int4's", "window 5")
    logits[1, 5] = logits[2, 0] = bad
    with pytest.raises(
        EngineError, match=f"int4's logits are not finite: {bad} for token 5 after 10 tokens of window 5"
    ):
        require_finite(ScoredRows(4, 2, logits), 6, "int4's", "window 5")


def test_nan_is_no_token_of_a_continuation() -> None:
    def source(windows: Any, first: int) -> Any:
        logits = np.eye(8, dtype=np.float32)[[5, 6, 7]]
        logits[2, 7] = np.nan  # which argmax takes for the largest
        yield ScoredRows(0, 0, logits)

    with pytest.raises(EngineError, match=r"a peer's logits .* after 5 tokens of the continuation of prompt 1;"):
        equal_greedy_tokens(source, np.zeros((1, 3), int), np.array([[5, 6, 7]]), "a peer's")
