"""Generation whose tokens are chosen on the device, against the same generation with tokens chosen on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.decode_loop import DeviceChooser
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.generation.request import Request
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.generation.text_engine import Reply
from llmc.runtimes.session.sampling_params import SamplingParams

from ... import generation
from ...generation import Generation, begin
from ..mixed_batches import NUCLEUS, check_requests_come_and_go, make_requests, random_prompts
from ..tiny_engine import PROMPTS, open_tiny

SAMPLED = SamplingParams(temperature=1.2, top_k=20, seed=3)
ALL = [
    pytest.param(SamplingParams(), id="greedy"),
    pytest.param(SAMPLED, id="top-k"),
    pytest.param(SamplingParams(temperature=0.9, top_p=0.8, seed=5), id="top-p"),
    pytest.param(SamplingParams(temperature=1.5, seed=6), id="unfiltered"),
]


@pytest.fixture(scope="module")
def session() -> Iterator[DeviceSession]:
    opened = open_tiny()
    yield opened
    opened.close()


def generate(session: DeviceSession, params: SamplingParams | None = None, **options: Any) -> Generation:
    return generation.generate(session, PROMPTS, params, **{"max_tokens": 12, **options})


def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceChooser, "can_choose", lambda chooser, settings: False)


@pytest.mark.parametrize("params", ALL)
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_device_gives_the_host_s_tokens(
    session: DeviceSession, params: SamplingParams, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = []
    loop = session.chooser.begin
    monkeypatch.setattr(session.chooser, "begin", lambda *args: loops.append(loop(*args)) or loops[-1])
    there = generate(session, params, prefill_chunk=chunk)
    lengths = session.lengths.tolist()
    assert len(loops) == 1
    on_host(monkeypatch)
    here = generate(session, params, prefill_chunk=chunk)
    assert len(loops) == 1
    assert there.tokens == here.tokens
    assert there.finished == here.finished == ("length",) * 3
    assert lengths == session.lengths.tolist()
    assert len(set(there.tokens)) == 3


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED])
def test_batch_changes_nothing(session: DeviceSession, params: SamplingParams) -> None:
    whole = generate(session, params).tokens
    for row, prompt in enumerate(PROMPTS):
        made = generation.generate(session, [prompt], params, max_tokens=12, ids=[row])
        assert made.tokens == (whole[row],)


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED])
def test_an_end_token_ends_its_row_while_others_go_on(
    session: DeviceSession, params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = generate(session, params).tokens
    end = next(token for token in free[0][2:8] if token not in free[1] and token not in free[0][:2])
    stop = [row.index(end) + 1 if end in row else 12 for row in free]
    made = generate(session, params, eos_ids=[end])
    assert made.tokens == tuple(row[:count] for row, count in zip(free, stop, strict=True))
    assert made.finished == tuple("eos" if end in row else "length" for row in free)
    lengths = [len(prompt) + count - 1 for prompt, count in zip(PROMPTS, stop, strict=True)]
    assert session.lengths.tolist() == lengths
    on_host(monkeypatch)
    assert generate(session, params, eos_ids=[end]).tokens == made.tokens
    assert session.lengths.tolist() == lengths


def test_a_row_that_ends_with_its_first_token(session: DeviceSession) -> None:
    free = generate(session).tokens
    others = [row for row in (0, 2) if free[1][0] not in free[row]]
    made = generate(session, eos_ids=[free[1][0]])
    assert made.tokens[1] == free[1][:1]
    assert others
    assert all(made.tokens[row] == free[row] for row in others)
    assert session.lengths[1] == len(PROMPTS[1])


def test_a_caller_ends_a_row(session: DeviceSession) -> None:
    free = generate(session).tokens
    made = begin(session, PROMPTS, max_tokens=12)
    for _ in range(5):
        made.batch.step()
    made.batch.cancel(made.requests[2])
    assert made.batch.step() == list(made.requests[:2])
    made.batch.run()
    assert made.tokens == (free[0], free[1], free[2][:5])
    assert made.finished == ("length", "length", "stop")
    assert session.lengths.tolist() == [18, 12, 8]


def test_when_a_caller_ends_all_rows_the_lengths_are_right(session: DeviceSession) -> None:
    made = begin(session, PROMPTS, max_tokens=12)
    for _ in range(4):
        made.batch.step()
    for request in made.requests:
        made.batch.cancel(request)
    assert not made.batch.busy
    assert [len(row) for row in made.tokens] == [4, 4, 4]
    assert session.lengths.tolist() == [10, 4, 7]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_tokens(session: DeviceSession, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free = generate(session).tokens
    loops: list[int] = []
    loop = session.chooser.begin
    monkeypatch.setattr(session.chooser, "begin", lambda *args: loops.append(1) or loop(*args))
    assert generate(session, max_tokens=count).tokens == tuple(row[:count] for row in free)
    assert len(loops) == (count > 1)
    assert session.lengths.tolist() == [len(prompt) + count - 1 for prompt in PROMPTS]


def test_a_full_context(session: DeviceSession) -> None:
    prompt = np.random.default_rng(3).integers(3, 160, 120).tolist()
    made = generation.generate(session, [prompt, prompt[:7]], max_tokens=8)
    assert [len(row) for row in made.tokens] == [8, 8]
    again = generation.generate(session, [prompt], max_tokens=8)
    assert again.tokens[0] == made.tokens[0]


def test_a_newer_batch_on_the_session_ends_the_loop(session: DeviceSession) -> None:
    """Nobody tells the older batch, but what it would read is no longer its own."""
    expected = generate(session).tokens
    older = begin(session, PROMPTS, max_tokens=12).batch
    older.step()
    older.step()
    assert generate(session).tokens == expected
    with pytest.raises(EngineError, match="this decode loop has ended"):
        older.run()


def test_logits_that_are_not_finite_are_an_error(session: DeviceSession) -> None:
    batch = begin(session, PROMPTS, max_tokens=12).batch
    batch.step()
    name = next(name for name in session._buffers if name.startswith("past_key_values.0.value"))
    values = session._buffers[name].owner.view(np.float16)
    row = session._buffers[name].nbytes // 3 // 2
    values[row : 2 * row] = np.nan
    with pytest.raises(EngineError, match="logits for row 1 are not finite at step 1; check the engine with `llmc v"):
        batch.step()


class _Letters(TextTokenizer):
    """Each token is a letter."""

    def __init__(self) -> None:
        """Needs no file."""

    def is_visible(self, token: int, *, skip_special_tokens: bool = True) -> bool:
        return True

    def decode(self, tokens: Any, *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x4E00 + token) for token in tokens)


def test_stop_strings_end_their_row(session: DeviceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = _Letters()
    free = generate(session, SAMPLED).tokens
    stop = letters.decode(free[0][3:5])
    results = []
    for _ in range(2):
        made = begin(session, PROMPTS, SAMPLED, max_tokens=12)
        reply = Reply(made.batch, made.requests, letters, [stop])
        pieces = list(reply)
        assert reply.texts == ["".join(row) for row in zip(*pieces, strict=True)]
        results.append((reply.texts, made.finished, session.lengths.tolist()))
        on_host(monkeypatch)
    assert results[0] == results[1]
    texts, finished, lengths = results[0]
    assert texts[0] == letters.decode(free[0][:3])
    assert finished[0] == "stop"
    assert texts[1] == letters.decode(free[1])
    assert lengths[0] == len(PROMPTS[0]) + 4


def test_the_penalty_is_applied_on_the_host(session: DeviceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.chooser, "begin", lambda *args: pytest.fail("the device knows no penalty"))
    made = generate(session, SamplingParams(repetition_penalty=1e6)).tokens
    for prompt, row in zip(PROMPTS, made, strict=True):
        assert len({*prompt, *row}) == len(set(prompt)) + 12


def test_an_engine_with_all_logits_generates_too(session: DeviceSession) -> None:
    expected = generate(session).tokens
    opened = open_tiny("all")
    assert generate(opened).tokens == generate(opened, prefill_chunk=3).tokens == expected
    opened.close()


# --- requests that come and go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [[SamplingParams()], [SamplingParams(), SAMPLED, NUCLEUS]], ids=["greedy", "mixed"]
)
def test_requests_come_and_go_and_the_device_goes_on(
    session: DeviceSession, settings: list[SamplingParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop begins again with other rows; what was recorded serves it."""
    requests = make_requests(random_prompts())

    def fresh() -> list[Request]:
        made = requests()
        for number, request in enumerate(made):
            request.sampling = settings[number % len(settings)]
        return made

    assert session.chooser is not None
    states: list[Any] = []
    begin_loop = session.chooser.begin
    monkeypatch.setattr(session.chooser, "begin", lambda rows: states.append(rows) or begin_loop(rows))
    check_requests_come_and_go(session, fresh)
    together = [[row.step for row in rows if row is not None] for rows in states if len(rows) == 3]
    assert len(together) > 1
    assert any(len(set(steps)) > 1 for steps in together), "rows go on at different steps"


def test_a_request_that_the_device_cannot_serve_makes_the_host_choose_while_it_is_there(
    session: DeviceSession,
) -> None:
    """A repetition penalty is the host's."""
    check_requests_come_and_go(session, make_requests(random_prompts()))
