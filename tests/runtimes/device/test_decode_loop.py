"""The decode loop on a device, on the host's memory: its tokens, its lengths, its end, and what it keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.decode_loop import LOOKAHEAD
from llmc.runtimes.device.sampler import UNIFORM_STEPS
from llmc.runtimes.device.session import CAPACITY_STEP, DeviceSession
from llmc.runtimes.session.capabilities import RowState, TokenSource
from llmc.runtimes.session.sampling import Sampler
from llmc.runtimes.session.sampling_params import SamplingParams

from ..row_states import begin_loop
from ..tiny_engine import PROMPTS, TOLERANCE, CountingDevice, LaggingDevice, open_tiny, reference, rows_of

STEPS = 14
SAMPLED = SamplingParams(temperature=1.2, top_k=20, seed=3)


@pytest.fixture(scope="module")
def session() -> Iterator[DeviceSession]:
    opened = open_tiny()
    yield opened
    opened.close()


def prefill(session: DeviceSession, prompts: list[list[int]] = PROMPTS, capacity: int = 40) -> np.ndarray:
    """The most likely first token of each row."""
    session.reset(len(prompts), capacity)
    return session.forward(*rows_of(prompts)).argmax()


def begin(
    session: DeviceSession,
    *,
    prompts: list[list[int]] = PROMPTS,
    params: SamplingParams | None = None,
    active: Sequence[bool] | None = None,
    steps: int = STEPS,
) -> tuple[np.ndarray, TokenSource]:
    """Token 0 of each row and the loop that goes on from there."""
    first = prefill(session, prompts)
    return first, begin_loop(session, first, params, steps, active)


def step_by_step(session: DeviceSession, params: SamplingParams, steps: int = STEPS) -> list[list[int]]:
    """Tokens 1 and on, [steps - 1][batch], chosen by the host from each forward's logits."""
    tokens = prefill(session)
    samplers, made = [Sampler(params, session.info.vocab_size, row) for row in range(len(tokens))], []
    for step in range(1, steps):
        logits = session.forward(tokens[:, None]).host()[:, 0]
        tokens = np.array([sampler.sample(row, step) for sampler, row in zip(samplers, logits, strict=True)])
        made.append(tokens.tolist())
    return made


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SAMPLED,
        SamplingParams(temperature=0.9, top_p=0.8, seed=5),
        SamplingParams(temperature=1.5, min_p=0.5, seed=8),
    ],
)
def test_the_loop_chooses_what_the_host_chooses(session: DeviceSession, params: SamplingParams) -> None:
    expected = step_by_step(session, params)
    _, loop = begin(session, params=params)
    assert [loop.tokens(step).tolist() for step in range(1, STEPS)] == expected
    assert len({tuple(row) for row in np.array(expected).T.tolist()}) == 3


def test_a_most_likely_token_is_found_where_a_loop_had_finished_a_row(session: DeviceSession) -> None:
    """Both use the greedy sampler of three rows."""
    expected = prefill(session).tolist()
    _, loop = begin(session, active=[True, False, True])
    loop.tokens(1)
    assert prefill(session).tolist() == expected
    assert min(expected) >= 0


@pytest.fixture
def lagging() -> Iterator[DeviceSession]:
    """A session whose copies to the host arrive when somebody waits for them."""
    opened = open_tiny(device=LaggingDevice())
    yield opened
    opened.close()


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED])
def test_tokens_are_read_after_they_have_arrived(
    session: DeviceSession, lagging: DeviceSession, params: SamplingParams
) -> None:
    """The first ones and each step's; so is what the runs before the recording change and is put back."""
    made = []
    for opened in (session, lagging):
        first, loop = begin(opened, params=params, steps=8)
        made.append([first.tolist(), *(loop.tokens(step).tolist() for step in range(1, 8))])
    assert made[0] == made[1]


def test_the_seed_is_not_in_what_is_recorded(session: DeviceSession) -> None:
    texts = []
    for seed in (1, 2, 1):
        _, loop = begin(session, params=SamplingParams(temperature=1.5, top_k=40, seed=seed))
        texts.append([loop.tokens(step).tolist() for step in range(1, STEPS)])
    assert texts[0] == texts[2] != texts[1]


def test_lengths_count_what_was_read(session: DeviceSession) -> None:
    """Steps run ahead, but the session says what a loop on the host would have left."""
    begins = np.array([len(prompt) for prompt in PROMPTS])
    _, loop = begin(session)
    assert session.lengths.tolist() == begins.tolist()
    loop.tokens(3)
    assert session.lengths.tolist() == (begins + 3).tolist()
    loop.finish(1)
    loop.tokens(5)
    loop.tokens(4)
    assert session.lengths.tolist() == (begins + np.array([5, 3, 5])).tolist()
    loop.close()
    assert session.lengths.tolist() == (begins + np.array([5, 3, 5])).tolist()


def test_a_finished_row_stands_still_and_changes_no_other(session: DeviceSession) -> None:
    _, loop = begin(session)
    free = [loop.tokens(step).tolist() for step in range(1, STEPS)]
    first, loop = begin(session, active=[True, False, True])
    assert first.tolist() == prefill(session).tolist()
    first, loop = begin(session, active=[True, False, True])
    made = [loop.tokens(1).tolist()]
    loop.finish(0)
    made += [loop.tokens(step).tolist() for step in range(2, STEPS)]
    assert [row[2] for row in made] == [row[2] for row in free]
    assert {row[1] for row in made} == {-1}
    ahead = 1 + LOOKAHEAD
    assert [row[0] for row in made[:ahead]] == [row[0] for row in free[:ahead]]
    assert {row[0] for row in made[ahead:]} == {-1}
    assert session.lengths.tolist() == [len(PROMPTS[0]) + 1, len(PROMPTS[1]), len(PROMPTS[2]) + STEPS - 1]


def test_a_forward_goes_on_where_the_reader_stopped(session: DeviceSession) -> None:
    first, loop = begin(session)
    made = [first.tolist(), loop.tokens(1).tolist(), loop.tokens(2).tolist()]
    rows = [[*prompt, *(step[row] for step in made)] for row, prompt in enumerate(PROMPTS)]
    single = session.forward(np.array(made[-1], np.int64)[:, None]).host()[:, 0]
    np.testing.assert_allclose(single, reference(session, rows), rtol=0, atol=TOLERANCE)

    _, loop = begin(session)
    loop.tokens(2)
    tails = np.array([[made[2][row], 90 + row, 100 + row] for row in range(3)], np.int64)
    several = session.forward(tails, np.array([3, 1, 2])).host()[:, 0]
    rows = [[*rows[0], 90, 100], rows[1], [*rows[2], 92]]
    np.testing.assert_allclose(several, reference(session, rows), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("end", ["forward", "reset", "close", "another"])
def test_a_loop_ends_when_the_session_goes_on(session: DeviceSession, end: str) -> None:
    _, loop = begin(session)
    tokens = loop.tokens(1)
    queued = 1 + LOOKAHEAD
    if end == "forward":
        session.forward(np.zeros((3, 1), np.int64))
    elif end == "reset":
        session.reset(3, 40)
    elif end == "close":
        loop.close()
    else:
        begin_loop(session, tokens, steps=4)
    kept = session.lengths.tolist()
    assert loop.tokens(1).tolist() == tokens.tolist()
    loop.tokens(queued)
    loop.finish(0)
    with pytest.raises(EngineError, match="this decode loop has ended"):
        loop.tokens(queued + 1)
    assert session.lengths.tolist() == kept


def test_the_last_slot_is_reached_and_none_behind_it(session: DeviceSession) -> None:
    """Runs before the recording repeat the first step: two steps further would be behind the cache."""
    prompts = np.random.default_rng(2).integers(3, 160, (2, CAPACITY_STEP - 1)).tolist()
    expected = reference(session, prompts).argmax(axis=1)
    after = [[*prompt, token] for prompt, token in zip(prompts, expected.tolist(), strict=True)]
    second = reference(session, after).argmax(axis=1)
    first = prefill(session, prompts, CAPACITY_STEP)
    loop = begin_loop(session, first, steps=2)
    assert first.tolist() == expected.tolist()
    assert loop.tokens(1).tolist() == second.tolist()
    assert session.lengths.tolist() == [CAPACITY_STEP] * 2


def test_what_does_not_fit_is_refused(session: DeviceSession) -> None:
    first = prefill(session, capacity=64)
    with pytest.raises(
        EngineError, match="row 0 holds 7 tokens and would hold 65, but the cache has room for 64; reset"
    ):
        begin_loop(session, first, steps=59)
    begin_loop(session, first, steps=58)
    for tokens, active in ((first, [False] * 3), (first[:2], [True] * 2)):
        with pytest.raises(
            EngineError, match=r"\d of \d rows are to go on in a session of 3 rows; give an entry per row"
        ):
            begin_loop(session, tokens, active=active)
    with pytest.raises(
        EngineError, match="the device has no sampler for what a row asks for; choose its tokens on the host"
    ):
        begin_loop(session, first, SamplingParams(repetition_penalty=1.1))


def test_logits_that_are_not_finite_give_no_token(session: DeviceSession) -> None:
    prefill(session)
    name = next(name for name in session._buffers if name.startswith("past_key_values.0.value"))
    row = session._buffers[name].nbytes // 3
    _, loop = begin(session)
    finite = loop.tokens(3).tolist()
    first = prefill(session)
    session._buffers[name].owner.view(np.float16)[row // 2 : row] = np.nan
    loop = begin_loop(session, first, steps=STEPS)
    tokens = loop.tokens(3).tolist()
    assert tokens == [finite[0], -1, finite[2]]


def test_long_loops_have_longer_logs(session: DeviceSession) -> None:
    params = SamplingParams(temperature=1.0, top_k=10, seed=9)
    _, loop = begin(session, params=params, steps=4, prompts=PROMPTS)
    short = [loop.tokens(step).tolist() for step in range(1, 4)]
    session.reset(3, 120)
    first = session.forward(*rows_of(PROMPTS)).argmax()
    loop = begin_loop(session, first, params, 90)
    made = [loop.tokens(step).tolist() for step in range(1, 90)]
    assert made[:3] == short
    assert min(map(min, made)) >= 0
    assert session.lengths.tolist() == [len(prompt) + 89 for prompt in PROMPTS]


def test_a_step_s_time_is_between_two_moments(session: DeviceSession) -> None:
    _, loop = begin(session)
    loop.tokens(STEPS - 1)
    seconds = [loop.step_seconds(step) for step in range(1, STEPS)]
    assert min(seconds) > 0
    assert max(seconds) < 5


def test_samplers_keep_their_memory() -> None:
    """A session whose buffers move makes no new memory for what finds the most likely token."""
    session = open_tiny()
    device = CountingDevice()
    session._device = session._samplers._device = device
    held = []
    for width in (2, 8, 16):
        session.reset(2, 20)
        session.forward(np.full((2, width), 5, np.int64)).argmax()
        held.append(len(device.held))
    assert held[0] == held[1] == held[2]
    session.close()
    assert device.held == {}


MIXED = [
    SamplingParams(temperature=1.2, top_k=20, seed=3),
    SamplingParams(),
    SamplingParams(temperature=0.9, top_p=0.8, seed=5),
    SamplingParams(temperature=1.5, min_p=0.3, seed=8),
    SamplingParams(temperature=1.1, top_k=90, top_p=0.9, min_p=0.01, seed=2**63),
    SamplingParams(temperature=1.5, seed=1),
]
STEPS_LEFT = [9, 13, 1, 11, 70, 3]


def test_rows_of_one_loop_ask_for_different_things(session: DeviceSession) -> None:
    """Settings, numbers, steps and budgets by row: each row's tokens are those that it gets alone."""
    prompts = [[*PROMPTS[row % 3], 40 + row] for row in range(6)]

    def begin_at(rows: list[int]) -> tuple[list[RowState], TokenSource]:
        session.reset(len(rows), 90)
        first = session.forward(*rows_of([prompts[row] for row in rows])).argmax().tolist()
        states = [
            RowState(token, MIXED[row], 7 - row, 1 + 5 * row, STEPS_LEFT[row])
            for row, token in zip(rows, first, strict=True)
        ]
        assert session.chooser is not None
        return states, session.chooser.begin(states)

    _, loop = begin_at(list(range(6)))
    together = np.array([loop.tokens(step) for step in range(1, 71)])
    assert session.lengths.tolist() == [len(prompt) + left for prompt, left in zip(prompts, STEPS_LEFT, strict=True)]
    for row, left in enumerate(STEPS_LEFT):
        assert together[left:, row].tolist() == [-1] * (70 - left)
        (state,), loop = begin_at([row])
        alone = [int(loop.tokens(step)[0]) for step in range(1, left + 1)]
        assert together[:left, row].tolist() == alone
        sampler, token, host = Sampler(state.settings, session.info.vocab_size, state.row_id), state.token, []
        session.reset(1, 90)
        session.forward(*rows_of([prompts[row]]))
        for step in range(min(left, 12)):
            logits = session.forward(np.array([[token]])).host()[0, 0]
            token = sampler.sample(logits, state.step + step)
            host.append(token)
        assert host == alone[:12]


def test_a_row_that_has_its_tokens_writes_no_more_than_the_next_slot(session: DeviceSession) -> None:
    """One row's budget ends at the cache's end, and steps for the others are queued ahead of the reader."""
    prompts = [[*range(3, 3 + CAPACITY_STEP - 4)], PROMPTS[0]]
    session.reset(2, CAPACITY_STEP)
    first = session.forward(*rows_of(prompts)).argmax().tolist()
    assert session.chooser is not None
    states = [RowState(first[row], SamplingParams(), row, 1, left) for row, left in ((0, 4), (1, 30))]
    with pytest.raises(EngineError, match="row 0 holds 60 tokens and would hold 65, but the cache has room for 64"):
        session.chooser.begin(states)
    loop = session.chooser.begin([replace(states[0], steps_left=3), states[1]])
    made = [loop.tokens(step).tolist() for step in range(1, 31)]
    assert [row[0] for row in made[3:]] == [-1] * 27
    assert session.lengths.tolist() == [CAPACITY_STEP - 1, len(PROMPTS[0]) + 30]
    row = [*PROMPTS[0], first[1], *(tokens[1] for tokens in made)]
    assert row[-1] == reference(session, [row[:-1]])[0].argmax()


def test_another_mix_of_rows_records_nothing_anew() -> None:
    device = CountingDevice()
    session = open_tiny(device=device)
    for seed, order in enumerate(([0, 4, 1], [4, 1, 0], [1, 0, 4])):
        first = prefill(session)
        settings = [replace(MIXED[index], seed=seed) for index in order]
        states = [
            RowState(int(token), one, row, 1, 5 + row)
            for row, (token, one) in enumerate(zip(first, settings, strict=True))
        ]
        session.chooser.begin([states[0], None, states[2]] if seed == 2 else states).tokens(5)
    assert device.events.count("record") == 1
    session.close()


def test_uniforms_go_on_behind_those_that_were_brought_at_once(session: DeviceSession) -> None:
    params = SamplingParams(temperature=1.4, seed=12)
    session.reset(1, 120)
    first = session.forward(np.array([[5]])).argmax()
    loop = begin_loop(session, first, params, 2 * UNIFORM_STEPS - 10)
    made = [int(first[0]), *(int(loop.tokens(step)[0]) for step in range(1, 2 * UNIFORM_STEPS - 10))]
    sampler = Sampler(params, session.info.vocab_size, 0)
    session.reset(1, 120)
    session.forward(np.array([[5]]))
    for step, (token, following) in enumerate(itertools.pairwise(made), 1):
        assert sampler.sample(session.forward(np.array([[token]])).host()[0, 0], step) == following
