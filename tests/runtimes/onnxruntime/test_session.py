"""Sessions on ONNX Runtime: states, and caches that grow, in rows that advance by different numbers of tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError
from llmc.runtimes.onnxruntime.cpu_engine import engine_info
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession

from ..session_graphs import BASE, GROWING, SHARED, SLOPES, STATES, WIDTH, Watched, chunk, load, open_session

STEPS = [[[1, 2, 3], [2]], [[], [1, 1]], [[2], []], [[3, 0], [3, 2, 1]], [[1], [2]]]
"""Tokens that each row is given in each chunk."""


def state_of(tokens: list[int]) -> list[float]:
    """What the graph of states says of a row."""
    number = 0
    for token in tokens:
        number = number * BASE + token
    return [number, *([0, 0, *tokens][-2:]), *[0] * (WIDTH - 3)]


def slots_of(tokens: list[int], padding: int) -> list[float]:
    """What the growing graph says of a row whose chunk ends with ``padding`` columns."""
    held = [1010 * token + 101 * position for position, token in enumerate(tokens)]
    return [*[0] * WIDTH, *held, *[0] * padding][-WIDTH:]


def feed(session: OnnxRuntimeSession, rows: list[list[int]]) -> Any:
    """One forward call; the logits of each row, which are equal in all columns of the chunk."""
    ids, lengths = chunk(rows)
    logits = session.forward(ids, lengths).host()
    assert (logits == logits[:, :1]).all()
    return logits[:, 0].tolist()


@pytest.mark.parametrize("fused", [False, True])
def test_states_go_round(fused: bool) -> None:
    """Each row has the state of its own tokens, whatever the others do."""
    session = open_session(STATES, fused=fused)
    session.reset(2, 32)
    held: list[list[int]] = [[], []]
    for rows in STEPS:
        held = [before + row for before, row in zip(held, rows, strict=True)]
        assert feed(session, rows) == [state_of(row) for row in held]
        assert session.lengths.tolist() == [len(row) for row in held]


@pytest.mark.parametrize("fused", [False, True])
def test_a_row_without_a_token_keeps_its_state(fused: bool) -> None:
    """Also the state of a row that is still empty."""
    session = open_session(STATES, fused=fused)
    session.reset(2, 32)
    feed(session, [[1, 2], []])
    feed(session, [[3], []])
    assert feed(session, [[], [2, 1]]) == [state_of([1, 2, 3]), state_of([2, 1])]
    assert feed(session, [[], [1]]) == [state_of([1, 2, 3]), state_of([2, 1, 1])]


def test_whole_chunks_need_no_lengths() -> None:
    session = open_session(STATES)
    session.reset(2, 8)
    session.forward(np.asarray([[1, 2], [3, 0]]))
    assert session.forward(np.asarray([[1], [2]])).host()[:, 0].tolist() == [state_of([1, 2, 1]), state_of([3, 0, 2])]


@pytest.mark.parametrize(("batch", "capacity"), [(2, 32), (3, 32), (2, 16)])
def test_reset_empties_states(batch: int, capacity: int) -> None:
    """With buffers that stay and with new ones; after an odd and an even number of steps."""
    for steps in (1, 2):
        session = open_session(STATES)
        session.reset(2, 32)
        for _ in range(steps):
            feed(session, [[3], [2]])
        session.reset(batch, capacity)
        assert session.lengths.tolist() == [0] * batch
        assert feed(session, [[1], *[[2, 1]] * (batch - 1)]) == [state_of([1]), *[state_of([2, 1])] * (batch - 1)]


def test_states_have_two_buffers_which_change_places() -> None:
    """No step allocates, and none reads what it writes."""
    inference = Watched(load(STATES))
    session = open_session(inference)
    session.reset(2, 32)
    for _ in range(4):
        feed(session, [[1], [2]])
    for name in ("0.recurrent_state", "0.conv_state"):
        read, written = inference.bound[f"past_key_values.{name}"], inference.bound[f"present.{name}"]
        assert len(set(read)) == 2
        assert len(read) == 5
        assert read[:-1] == written[1:]
        assert all(a != b for a, b in zip(read, written, strict=True))


def test_rows_of_states_are_independent() -> None:
    alone = open_session(STATES)
    together = open_session(STATES)
    together.reset(2, 32)
    for row in range(2):
        together.reset(2, 32)
        alone.reset(1, 32)
        for rows in STEPS:
            both = feed(together, rows)
            assert feed(alone, [rows[row]]) == [both[row]]


def test_what_grows_is_padded_on_the_left_after_a_ragged_chunk() -> None:
    """Keys by heads along axis 2, an indexer's along axis 1, aligned with the mask's columns and with positions."""
    session = open_session(GROWING)
    session.reset(2, 32)
    held: list[list[int]] = [[], []]
    for rows in STEPS:
        held = [before + row for before, row in zip(held, rows, strict=True)]
        width = max(1, *map(len, rows))
        padding = [width - len(row) for row in rows]
        assert feed(session, rows) == [slots_of(*row) for row in zip(held, padding, strict=True)]
    assert session.lengths.tolist() == [7, 7]
    session.reset(2, 32)
    assert feed(session, [[2], [1]]) == [slots_of([2], 0), slots_of([1], 0)]


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=3, max_size=3), min_size=1, max_size=4),
    graph=st.sampled_from(["states", "growing"]),
)
def test_any_ragged_batch(steps: list[list[list[int]]], graph: str) -> None:
    session = SESSIONS.setdefault(graph, open_session(STATES if graph == "states" else GROWING))
    session.reset(3, 24)
    held: list[list[int]] = [[], [], []]
    for rows in steps:
        held = [before + row for before, row in zip(held, rows, strict=True)]
        width = max(1, *map(len, rows))
        wanted = [
            state_of(row) if graph == "states" else slots_of(row, width - len(new))
            for row, new in zip(held, rows, strict=True)
        ]
        assert feed(session, rows) == wanted


SESSIONS: dict[str, OnnxRuntimeSession] = {}


def open_shared(**fields: Any) -> OnnxRuntimeSession:
    return open_session(SHARED, fused=True, cache="shared", **fields)


def first_slots(tokens: list[int]) -> list[float]:
    """What the shared graph says of a row."""
    return [*tokens, *[-1] * WIDTH][:WIDTH]


def test_rows_of_a_shared_cache_begin_at_slot_0() -> None:
    """A row that is empty, or has no token in a chunk, shows the others no slot and loses none of its own."""
    session = open_shared()
    session.reset(3, WIDTH)
    held: list[list[int]] = [[], [], []]
    for rows in ([[1, 2, 3], [2], []], [[], [1, 1], []], [[2], [], []], [[3, 0], [3, 2, 1], [2]], [[1], [2], [0]]):
        held = [before + row for before, row in zip(held, rows, strict=True)]
        made = feed(session, rows)
        for row, tokens in enumerate(held):
            assert not rows[row] or made[row] == first_slots(tokens)
        assert session.lengths.tolist() == [len(row) for row in held]


def test_a_fused_mask_says_what_is_held_and_what_is_new() -> None:
    """Row sums and sums over the last columns; a kernel takes no row without a token, so an empty one has one."""
    session = open_session(STATES, fused=True)
    session.reset(3, 16)
    mask = session._fused_mask(np.array([2, 0, 3]), 3, False)
    assert mask.sum(axis=1).tolist() == [2, 1, 3]
    feed(session, [[1, 2], [], [3, 1, 2]])
    mask = session._fused_mask(np.array([0, 0, 1]), 2, False)
    assert (mask.sum(axis=1).tolist(), mask[:, -2:].sum(axis=1).tolist()) == ([2, 1, 4], [0, 1, 1])
    assert mask.shape == (3, 5)


def test_one_row_of_a_shared_cache_to_its_last_slot() -> None:
    """Whole chunks, which need no mask of their own, and padded ones, whose columns must fit, too."""
    session = open_shared()
    session.reset(1, 6)
    session.forward(np.array([[1, 2]]))
    assert feed_padded(session, [[3]], 3) == [first_slots([1, 2, 3])]
    with pytest.raises(
        EngineError, match=r"a row holds 3 tokens and the chunk has 4 columns, more than the cache's 6"
    ):
        feed_padded(session, [[1]], 4)
    assert session.lengths.tolist() == [3]
    assert feed_padded(session, [[1]], 3) == [first_slots([1, 2, 3, 1])]
    assert session.forward(np.array([[2, 2]])).host()[0, 0].tolist() == first_slots([1, 2, 3, 1, 2, 2])
    with pytest.raises(EngineError, match="a row would hold 7 tokens, but the cache has room for 6"):
        session.forward(np.array([[1]]))


def feed_padded(session: OnnxRuntimeSession, rows: list[list[int]], width: int) -> Any:
    """:func:`feed` with columns of padding."""
    ids = np.full((len(rows), width), BASE - 1, np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return session.forward(ids, np.array([len(row) for row in rows])).host()[:, 0].tolist()


def test_a_shared_cache_is_one_buffer_that_reset_keeps() -> None:
    inference = Watched(load(SHARED))
    session = open_session(inference, fused=True, cache="shared")
    for tokens in ([[1, 2, 3], [2, 2]], [[2], [1]]):
        session.reset(2, 8)
        assert feed(session, tokens) == [first_slots(row) for row in tokens]
        assert feed(session, [[3], [0]]) == [
            first_slots([*row, new]) for row, new in zip(tokens, (3, 0), strict=True)
        ]
    assert inference.bound["past_key_values.0.key"] == inference.bound["present.0.key"]
    assert len(inference.bound["present.0.key"]) == 1


def test_reset_sets_the_limit() -> None:
    for first, second in ((8, 4), (4, 8)):
        session = open_shared()
        session.reset(2, first)
        feed(session, [[1], [2]])
        session.reset(2, second)
        assert feed(session, [[1, 2, 3, 1], [2]]) == [first_slots([1, 2, 3, 1]), first_slots([2])]
        for _ in range(second - 4):
            feed(session, [[1], [1]])
        with pytest.raises(EngineError, match=f"would hold {second + 1} tokens, but the cache has room for {second}"):
            feed(session, [[1], []])


def test_padding_takes_no_room_where_the_cache_grows() -> None:
    session = open_session(STATES, fused=True)
    session.reset(3, 4)
    feed(session, [[1, 2, 3], [2], [1]])
    assert feed_padded(session, [[3], [], [2]], 6) == [state_of([1, 2, 3, 3]), state_of([2]), state_of([1, 2])]


def test_lengths_that_were_read_stay() -> None:
    session = open_session(STATES)
    session.reset(2, 8)
    before = session.lengths
    feed(session, [[1, 2], [3]])
    assert before.tolist() == [0, 0]
    session.lengths[:] = 5
    assert session.lengths.tolist() == [2, 1]


def test_graphs_that_continue_no_ragged_chunks() -> None:
    """A first chunk may be ragged, and a later one of a token per row, of some rows or of whole rows."""
    session = open_session(STATES, contract=Contract(ragged_chunks=False))
    session.reset(2, 32)
    feed(session, [[1, 2], [3]])
    feed(session, [[1], []])
    feed(session, [[1, 2], [2, 1]])
    for rows in ([[1, 2], [3]], [[], [1, 1]]):
        with pytest.raises(EngineError, match=r"unequal length can only be continued in chunks by .* 1\.32 or newer"):
            feed(session, rows)
    assert session.lengths.tolist() == [5, 3]
    session.reset(2, 32)
    assert feed(session, [[1, 2], [3]]) == [state_of([1, 2]), state_of([3])]
    other = open_session(STATES, contract=Contract(ragged_chunks=True))
    other.reset(2, 32)
    feed(other, [[1], [2]])
    assert feed(other, [[1, 2], [3]]) == [state_of([1, 1, 2]), state_of([2, 3])]


@pytest.mark.parametrize("half", [False, True])
def test_the_most_likely_token_follows_each_row_s_last_valid_one(half: bool) -> None:
    session = open_session(load(SLOPES, half=half), vocab_size=4)
    session.reset(2, 16)
    logits = session.forward(np.array([[0, 3, 0], [3, 0, 3]]), np.array([2, 1]))
    assert logits.argmax().tolist() == [3, 3]
    assert logits.host().dtype == np.float32
    assert logits.host()[0, 1].tolist() == [0, 2, 4, 6]
    assert session.forward(np.array([[0, 3, 0], [3, 0, 3]]), np.array([1, 2])).argmax().tolist() == [0, 0]
    assert session.forward(np.array([[3], [0]])).argmax().tolist() == [3, 0]


def test_bytes_per_token_count_what_grows() -> None:
    """Two heads of one key and one value and three of an indexer, in float32; no state."""
    manifest: Any = SimpleNamespace(
        engine=None, max_context=None, contract=Contract(), weight_bytes=1, precision="fp32", weights_label="fp32"
    )
    info = engine_info(manifest, "test", 1, load(GROWING))
    assert (info.cache_bytes_per_token, info.num_layers, info.vocab_size) == (4 * (2 + 2 + 3), 1, WIDTH)
    info = engine_info(manifest, "test", 1, load(STATES))
    assert (info.cache_bytes_per_token, info.num_layers) == (0, 0)
    half = load(GROWING, half=True)
    assert engine_info(manifest, "test", 1, half).cache_bytes_per_token == 2 * (2 + 2 + 3)


def test_refusals() -> None:
    session = open_session(GROWING)
    with pytest.raises(EngineError, match="65 tokens are more than this engine's context of 64"):
        session.reset(1, 65)
    with pytest.raises(EngineError, match="a cache of 0 rows and 4 tokens holds nothing"):
        session.reset(0, 4)
    session.reset(2, 4)
    with pytest.raises(EngineError, match="the session holds 2 rows, not 1"):
        session.forward(np.zeros((1, 1), np.int64))
    with pytest.raises(EngineError, match="a row would hold 5 tokens, but the cache has room for 4"):
        session.forward(np.zeros((2, 5), np.int64))
    assert session.lengths.tolist() == [0, 0]
    assert feed(session, [[1, 2, 3, 1], [2]])[0] == slots_of([1, 2, 3, 1], 0)


def test_a_token_that_the_cache_keeps_is_spoiled() -> None:
    """In a cache that grows, and in a shared one; tokens after it are as they were."""
    session = open_session(GROWING, fused=True)
    assert (session.spoiler, session.layers) == (session, (0,))
    session.reset(1, 16)
    before = feed(session, [[3, 1, 2, 3]])[0]
    session.spoil(1, [0], seed=1)
    after = feed(session, [[1]])[0]
    assert after[-5] == before[-4]
    assert after[-4] != before[-3]
    assert after[-3:-1] == before[-2:]
    shared = open_session(SHARED, fused=True, cache="shared")
    shared.reset(1, 16)
    feed(shared, [[3, 1, 2]])
    shared.spoil(1, [0], seed=1)
    assert [abs(number) for number in feed(shared, [[1]])[0][:4]] == [3, 3, 2, 1]
    shared.spoil(2, [1], seed=1)  # there is no such layer
    assert [abs(number) for number in feed(shared, [[1]])[0][:4]] == [3, 3, 2, 1]


def test_states_are_not_spoiled() -> None:
    assert open_session(STATES, fused=True).spoiler is None
