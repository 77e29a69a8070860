"""Requests that come and go: each gives the tokens that it gives alone, whenever it joins and whoever is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.sampling_params import SamplingParams

EDITORS = [None, False, True]
"""Sessions without an editor, with one that computes unequal chunks row by row, and with one that mixes them."""
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=1.5, seed=3),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=4),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(temperature=2.0, repetition_penalty=1.2, min_p=0.05, seed=2),
]
REQUESTS = st.builds(
    dict,
    prompt=st.lists(st.integers(0, 49), min_size=1, max_size=14),
    max_tokens=st.integers(1, 12),
    sampling=st.sampled_from(SAMPLINGS),
    eos_ids=st.frozensets(st.integers(0, 49), max_size=4),
    stop_sequences=st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
    joins=st.integers(0, 12),
    leaves=st.none() | st.integers(1, 4),
)


def alone(session: Any, fields: dict[str, Any], number: int = 0) -> Request:
    """The request by itself, on a session of its own."""
    request = Request(**fields, id=number)
    Batch.of(session, [request]).run()
    return request


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(REQUESTS, min_size=1, max_size=6),
    rows=st.integers(1, 4),
    chunk=st.none() | st.integers(1, 15),
    kind=st.sampled_from(["last", "all"]),
    editor=st.sampled_from(EDITORS),
)
def test_a_request_gives_in_any_company_what_it_gives_alone(
    fake_session: Any, wanted: list[dict[str, Any]], rows: int, chunk: int | None, kind: str, editor: bool | None
) -> None:
    joins = [fields.pop("joins") for fields in wanted]
    leaves = [fields.pop("leaves") for fields in wanted]
    expected = [alone(fake_session(logits=kind), fields, number) for number, fields in enumerate(wanted)]
    requests = [Request(**fields, id=number) for number, fields in enumerate(wanted)]
    session = fake_session(logits=kind, editor=editor)
    batch, step = Batch(session, rows, 26, prefill_chunk=chunk), 0
    while batch.busy or step <= max(joins):
        for request, joined in zip(requests, joins, strict=True):
            if joined == step:
                batch.add(request)
        for request in batch.step():
            assert request.tokens
            if len(request.tokens) == leaves[request.id] and request.finished is None:
                batch.cancel(request)
        step += 1
    for request, reference, count in zip(requests, expected, leaves, strict=True):
        ends_early = count is not None and count < len(reference.tokens)
        assert request.tokens == (reference.tokens[:count] if ends_early else reference.tokens)
        assert request.finished == ("stop" if ends_early else reference.finished)
    assert session.lengths.max() <= 26


def requests_of(*prompts: list[int], max_tokens: int = 4) -> list[Request]:
    return [Request(prompt, max_tokens, id=number) for number, prompt in enumerate(prompts)]


def test_rows_with_a_token_go_along_with_another_rows_prompt(fake_session: Any) -> None:
    session = fake_session(editor=True)
    batch = Batch(session, 2, 20, prefill_chunk=3)
    first, second = requests_of([1, 2], [3, 4, 5, 6, 7, 8, 9], max_tokens=5)
    batch.add(first)
    assert batch.step() == [first]
    batch.add(second)
    assert [batch.step() for _ in range(3)] == [[first], [first], [first, second]]
    batch.run()
    assert session.calls == [
        ((2, 2), [2, 0]),
        ((2, 3), [1, 3]),
        ((2, 3), [1, 3]),
        ((2, 1), [1, 1]),
        ((2, 1), None),
        *[((2, 1), [0, 1])] * 3,
    ]


def test_where_chunks_run_row_by_row_they_take_turns(fake_session: Any) -> None:
    """A row with a token waits for one chunk of another row's prompt at most."""
    session = fake_session(editor=False)
    batch = Batch(session, 2, 20, prefill_chunk=3)
    first, second = requests_of([1, 2], [3, 4, 5, 6, 7, 8, 9], max_tokens=5)
    batch.add(first)
    batch.step()
    batch.add(second)
    assert [batch.step() for _ in range(5)] == [[], [first], [], [first], [second]]
    assert [lengths for _, lengths in session.calls[1:]] == [[0, 3], [1, 0], [0, 3], [1, 0], [0, 1]]
    assert batch.step() == [first, second]


def test_without_an_editor_those_that_wait_begin_together(fake_session: Any) -> None:
    session = fake_session()
    batch = Batch(session, 2, 20)
    requests = requests_of([1, 2], [3], [4, 5, 6], max_tokens=2)
    for request in requests:
        batch.add(request)
    assert [batch.step() for _ in range(4)] == [requests[:2], requests[:2], requests[2:], requests[2:]]
    assert not batch.busy
    assert [shape for shape, _ in session.calls] == [(2, 2), (2, 1), (1, 3), (1, 1)], "the second batch has one row"


def test_a_row_is_released_when_another_request_comes_and_not_before(fake_session: Any) -> None:
    session = fake_session(editor=True)
    batch = Batch(session, 2, 9)
    short, long, next_one = requests_of([1, 2], [3], [4, 5, 6])
    short.max_tokens = 1
    batch.add(short)
    batch.add(long)
    batch.step()
    batch.step()
    assert (session.lengths.tolist(), session.rows.released) == ([2, 2], [])
    batch.add(next_one)
    assert batch.step() == [next_one, long]
    assert (session.lengths.tolist(), session.rows.released) == ([3, 3], [0])
    batch.run()
    assert next_one.tokens == alone(fake_session(), {"prompt": [4, 5, 6], "max_tokens": 4}, 2).tokens


def test_a_chunk_leaves_room_behind_the_longest_row(fake_session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As runtimes want it that write all of a chunk's columns behind each row."""
    session = fake_session(editor=True)
    forward = session.forward

    def strict(input_ids: Any, lengths: Any = None) -> Any:
        assert session.lengths.max() + input_ids.shape[1] <= 12
        return forward(input_ids, lengths)

    monkeypatch.setattr(session, "forward", strict)
    batch = Batch(session, 2, 12)
    first, second = requests_of([1], [2, 3, 4, 5, 6, 7, 8, 9], max_tokens=3)
    first.max_tokens = 11
    batch.add(first)
    for _ in range(9):
        batch.step()
    batch.add(second)
    batch.run()
    assert [len(request.tokens) for request in (first, second)] == [11, 3]
    assert second.tokens == alone(fake_session(), {"prompt": second.prompt, "max_tokens": 3}, 1).tokens


def test_no_more_rows_than_the_engine_was_built_for(fake_session: Any) -> None:
    session = fake_session(max_batch=2)
    requests = requests_of([1], [2], [3], [4], [5])
    Batch.of(session, requests).run()
    assert {shape[0] for shape, _ in session.calls} == {2, 1}
    for number, request in enumerate(requests):
        assert request.tokens == alone(fake_session(), {"prompt": request.prompt, "max_tokens": 4}, number).tokens


def test_a_request_that_waits_can_be_cancelled(fake_session: Any) -> None:
    batch = Batch(fake_session(), 1, 9)
    first, second = requests_of([1], [2])
    batch.add(first)
    batch.add(second)
    batch.step()
    batch.cancel(second)
    batch.run()
    assert (second.tokens, second.finished) == ([], "stop")
    assert first.finished == "length"


def test_what_exceeds_the_capacity_of_the_batch_is_refused(fake_session: Any) -> None:
    batch = Batch(fake_session(), 1, 9)
    with pytest.raises(UsageError, match="6 tokens and 4 new ones exceed the batch's capacity of 9; ask for"):
        batch.add(requests_of([1] * 6)[0])
    assert not batch.busy


def test_a_step_with_nothing_to_do_computes_nothing(fake_session: Any) -> None:
    session = fake_session(editor=True)
    assert Batch(session, 2, 9).step() == []
    assert session.calls == []
    with pytest.raises(UsageError, match="there is no prompt"):
        Batch.of(session, [])


# --- logits that are watched, tokens that are known ---------------------------------------------------------------


@pytest.mark.parametrize("editor", EDITORS)
@pytest.mark.parametrize("kind", ["last", "all"])
@pytest.mark.parametrize("chunk", [None, 1, 2, 4])
def test_who_watches_sees_the_logits_behind_every_token(
    fake_session: Any, kind: str, chunk: int | None, editor: bool | None
) -> None:
    """Of an engine with logits of the last position only: behind each chunk's last token."""
    prompt, forced = [5, 6, 7, 8, 9], [11, 12, 13]
    session = fake_session()
    session.reset(1, 9)
    wanted = session.forward(np.array([[*prompt, *forced]])).host()[0]
    seen: dict[int, Any] = {}

    def watch(position: int, logits: Any) -> None:
        seen.update({position + index: row.copy() for index, row in enumerate(logits)})

    request = Request(prompt, 3, forced=forced, watch=watch)
    other = Request([1, 2, 3], 9, id=1)
    Batch.of(fake_session(logits=kind, editor=editor), [other, request], prefill_chunk=chunk).run()
    assert (request.tokens, request.finished) == (forced, "length")
    step = chunk or 5
    ends = {min(end, 5) - 1 for end in range(step, 5 + step, step)}
    assert set(seen) == (set(range(7)) if kind == "all" else ends | {5, 6})
    assert all((seen[position] == wanted[position]).all() for position in seen)
    assert other.tokens == alone(fake_session(), {"prompt": [1, 2, 3], "max_tokens": 9}, 1).tokens


def test_a_known_continuation_needs_no_watcher(fake_session: Any) -> None:
    request = Request([5], 3, forced=[11, 12, 13])
    Batch.of(fake_session(), [request]).run()
    assert request.tokens == [11, 12, 13]


def test_a_prompt_that_is_only_watched_gives_no_token(fake_session: Any) -> None:
    session, seen = fake_session(), []
    request = Request([5, 6, 7], 0, watch=lambda position, logits: seen.append((position, len(logits))))
    batch = Batch.of(session, [request], prefill_chunk=2)
    assert [batch.step(), batch.step()] == [[], []]
    assert (request.tokens, request.finished, batch.busy) == ([], "length", False)
    assert seen == [(0, 2), (2, 1)]
    assert session.lengths.tolist() == [3]
