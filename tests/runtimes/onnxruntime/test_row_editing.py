"""Rows of ONNX Runtime's sessions that are released, cut and copied: what then lies in the cache, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession

from ..session_graphs import GROWING, SHARED, STATES, open_session
from .test_session import feed, first_slots, slots_of, state_of

HELD = [[1, 2, 3, 1], [2, 3], [3, 0, 2]]
SESSIONS: dict[str, tuple[Callable[[], OnnxRuntimeSession], Callable[[list[int]], list[float]]]] = {
    "states": (lambda: open_session(STATES), state_of),
    "states, fused": (lambda: open_session(STATES, fused=True), state_of),
    "growing": (lambda: open_session(GROWING), lambda tokens: slots_of(tokens, 0)),
    "states, shared": (lambda: open_session(STATES, fused=True, cache="shared"), state_of),
    "shared, never ragged": (
        lambda: open_session(SHARED, contract=Contract(rows="slot0", cache="shared", ragged_chunks=False)),
        first_slots,
    ),
    "shared": (lambda: open_session(SHARED, fused=True, cache="shared"), first_slots),
}


def open_held(name: str) -> tuple[OnnxRuntimeSession, Callable[[list[int]], list[float]]]:
    make, says = SESSIONS[name]
    session = make()
    session.reset(3, 16)
    feed(session, HELD)
    assert session.rows is session
    return session, says


@pytest.mark.parametrize("name", SESSIONS)
@pytest.mark.parametrize("row", [0, 1])
def test_a_released_row_begins_anew(name: str, row: int) -> None:
    """The longest row, and one that is not; at once, and after others went on."""
    for pauses in (0, 2):
        session, says = open_held(name)
        session.rows.release(row)
        held = [[] if index == row else tokens for index, tokens in enumerate(HELD)]
        assert session.lengths.tolist() == list(map(len, held))
        for step in range(pauses):
            new = [[] if index == row else [step] for index in range(3)]
            held = [before + more for before, more in zip(held, new, strict=True)]
            made: Any = feed(session, new)
            assert [made[index] for index in range(3) if index != row] == [
                says(held[index]) for index in range(3) if index != row
            ]
        new = [[3, 2, 1, 0, 2] if index == row else [] for index in range(3)]
        assert feed(session, new)[row] == says(new[row])
        held[row] = new[row]
        assert feed(session, [[1], [1], [1]]) == [says([*tokens, 1]) for tokens in held]


@pytest.mark.parametrize("name", ["growing", "shared", "shared, never ragged"])
@pytest.mark.parametrize(("row", "length"), [(0, 1), (0, 0), (1, 1), (2, 3)])
def test_a_row_is_cut(name: str, row: int, length: int) -> None:
    session, says = open_held(name)
    session.rows.truncate(row, length)
    held = [tokens[:length] if index == row else tokens for index, tokens in enumerate(HELD)]
    assert feed(session, [[1], [0], [3]]) == [
        says([*tokens, new]) for tokens, new in zip(held, (1, 0, 3), strict=True)
    ]


@pytest.mark.parametrize("name", SESSIONS)
@pytest.mark.parametrize(("source", "target", "length"), [(0, 1, 4), (1, 0, 2), (0, 2, 2), (2, 1, 0)])
def test_a_row_takes_over_a_prefix(name: str, source: int, target: int, length: int) -> None:
    session, says = open_held(name)
    if name.startswith("states") and length not in (0, len(HELD[source])):
        with pytest.raises(EngineError, match="row 0 keeps a recurrent state of 4 tokens, which cannot go back to 2"):
            session.rows.copy_prefix(source, target, length)
        return
    session.rows.copy_prefix(source, target, length)
    held = [HELD[source][:length] if index == target else tokens for index, tokens in enumerate(HELD)]
    assert feed(session, [[1], [0], [3]]) == [
        says([*tokens, new]) for tokens, new in zip(held, (1, 0, 3), strict=True)
    ]


@pytest.mark.parametrize(("name", "computed"), [("growing", (3, 5)), ("shared", (1, 5)), ("states, shared", (1, 5))])
def test_a_prompt_that_joins_is_computed_alone_in_a_shared_cache(name: str, computed: tuple[int, int]) -> None:
    """Where the cache grows the other rows are padded to its width."""
    session, says = open_held(name)
    shapes = []
    run = session._run
    session._run = lambda binding: run(binding) or shapes.append(binding.get_outputs()[-1].shape()[:2])  # type: ignore
    session.rows.release(2)
    assert feed(session, [[], [], [3, 1, 2, 0, 2]])[2] == says([3, 1, 2, 0, 2])
    assert [tuple(shape) for shape in shapes] == [computed]
    assert session.rows.mixes_lengths == (name == "growing")
    feed(session, [[1], [1], [1]])
    assert tuple(shapes[-1]) == (3, 1)


def test_what_a_row_does_not_hold_is_refused() -> None:
    session, _ = open_held("shared")
    for length in (3, -1):
        with pytest.raises(EngineError, match=f"row 1 holds 2 tokens, of which it cannot keep {length}"):
            session.rows.truncate(1, length)
    assert session.lengths.tolist() == [4, 2, 3]


def test_rows_stay_where_none_can_begin_beside_others() -> None:
    assert open_session(STATES, contract=Contract(ragged_chunks=False)).rows is None
