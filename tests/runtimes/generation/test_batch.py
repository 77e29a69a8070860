"""The decode loop on a fake session: what reaches the session, what comes out, and when it ends."""

from __future__ import annotations

import sys
from subprocess import run
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.session.sampling_params import SamplingParams

from ... import generation
from ...generation import Generation, begin

PROMPTS = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [40], [11, 12, 13, 14], [7, 7]]
SAMPLED = SamplingParams(temperature=1.5, top_k=30, repetition_penalty=1.2, seed=5)


def generate(session: Any, prompts: list[list[int]] = PROMPTS, **options: Any) -> Generation:
    return generation.generate(session, prompts, **{"max_tokens": 12, **options})


def last_logits(session: Any, tokens: list[int]) -> np.ndarray:
    session.reset(1, len(tokens))
    return session.forward(np.array([tokens])).host()[0, -1]


def test_greedy_is_the_argmax_of_a_whole_forward(fake_session: Any) -> None:
    for prompt, tokens in zip(PROMPTS, generate(fake_session()).tokens, strict=True):
        for index, token in enumerate(tokens):
            assert token == last_logits(fake_session(), [*prompt, *tokens[:index]]).argmax()


@pytest.mark.parametrize("params", [SamplingParams(), SAMPLED])
@pytest.mark.parametrize("kind", ["all", "last"])
def test_batch_and_chunks_change_nothing(fake_session: Any, params: SamplingParams, kind: str) -> None:
    whole = generate(fake_session(logits=kind), params=params).tokens
    assert all(len(row) == 12 for row in whole)
    assert len(set(whole)) == len(whole)
    for chunk in (1, 2, 4, 8, 9, 100):
        assert generate(fake_session(logits=kind), params=params, prefill_chunk=chunk).tokens == whole
    for row, prompt in enumerate(PROMPTS):
        assert generate(fake_session(logits=kind), [prompt], params=params, ids=[row]).tokens == (whole[row],)


def test_the_repetition_penalty_counts_prompt_and_text(fake_session: Any) -> None:
    free = generate(fake_session()).tokens
    assert any(len({*prompt, *row}) < len(set(prompt)) + 12 for prompt, row in zip(PROMPTS, free, strict=True))
    result = generate(fake_session(), params=SamplingParams(repetition_penalty=1e6))
    for prompt, row in zip(PROMPTS, result.tokens, strict=True):
        assert len({*prompt, *row}) == len(set(prompt)) + 12


def test_seeds_reproduce_and_differ(fake_session: Any) -> None:
    texts = [generate(fake_session(), params=SamplingParams(temperature=1.5, seed=seed)).tokens for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_what_the_session_is_fed(fake_session: Any) -> None:
    session = fake_session()
    generate(session, max_tokens=3, prefill_chunk=4)
    assert session.calls == [
        ((4, 4), [4, 1, 4, 2]),
        ((4, 4), [4, 0, 0, 0]),
        ((4, 1), [1, 0, 0, 0]),
        ((4, 1), None),
        ((4, 1), None),
    ]
    assert session.lengths.tolist() == [11, 3, 6, 4]


def test_profiles_bound_the_prefill(fake_session: Any) -> None:
    session = fake_session(profiles=((1, 1), (1, 4)))
    generate(session, max_tokens=1)
    assert [shape for shape, _ in session.calls] == [(4, 4), (4, 4), (4, 1)]


def test_a_chunk_that_is_asked_for_keeps_to_the_profiles(fake_session: Any) -> None:
    for asked, widths in ((6, [4, 4, 1]), (3, [3, 3, 3])):
        session = fake_session(profiles=((1, 1), (1, 4)))
        generate(session, max_tokens=1, prefill_chunk=asked)
        assert [shape[1] for shape, _ in session.calls] == widths


def test_greedy_leaves_the_logits_where_they_are(fake_session: Any) -> None:
    session = fake_session()
    generate(session)
    assert sum(output.host_calls for output in session.outputs) == 0


def test_end_tokens_end_their_row_alone(fake_session: Any) -> None:
    free = generate(fake_session()).tokens
    end = free[0][4]
    session = fake_session()
    result = begin(session, PROMPTS, max_tokens=12, eos_ids=[end])
    steps = []
    while result.batch.busy:
        steps.append([(request.id, request.finished) for request in result.batch.step()])
    for row, tokens in enumerate(result.tokens):
        stop = free[row].index(end) + 1 if end in free[row] else 12
        assert tokens == free[row][:stop]
        assert result.finished[row] == ("eos" if end in free[row] else "length")
        told = [finished for step in steps for number, finished in step if number == row]
        assert told == [None] * (stop - 1) + [result.finished[row]]
    assert session.lengths.tolist() == [
        len(prompt) + len(tokens) - 1 for prompt, tokens in zip(PROMPTS, result.tokens, strict=True)
    ]


def test_the_loop_ends_with_its_last_row(fake_session: Any) -> None:
    session = fake_session()
    first = generate(session, max_tokens=1).tokens
    session = fake_session()
    result = generate(session, eos_ids=[row[0] for row in first])
    assert result.finished == ("eos",) * 4
    assert len(session.calls) == 1
    assert [len(row) for row in result.tokens] == [1] * 4


def test_stop_sequences(fake_session: Any) -> None:
    free = generate(fake_session()).tokens
    pair = free[2][5:7]
    result = generate(fake_session(), stop_sequences=[pair, (*free[1][:2], 49)])
    assert result.tokens[2] == free[2][:7]
    assert result.finished[2] == "stop"
    assert result.finished[1] == "length"


def test_a_stop_sequence_may_be_all_that_was_said(fake_session: Any) -> None:
    free = generate(fake_session()).tokens
    for row, length in enumerate((1, 2, 3)):
        result = generate(fake_session(), stop_sequences=[free[row][:length]])
        assert (result.tokens[row], result.finished[row]) == (free[row][:length], "stop")


def test_the_end_of_a_stop_sequence_alone_ends_no_row(fake_session: Any) -> None:
    free = generate(fake_session(), PROMPTS[:1]).tokens
    other = next(token for token in range(50) if token not in free[0])
    result = generate(fake_session(), PROMPTS[:1], stop_sequences=[(other, free[0][3]), (free[0][2], other)])
    assert (result.tokens, result.finished) == (free, ("length",))


def test_why_a_row_ends_with_its_last_token(fake_session: Any) -> None:
    """An end token or a stop sequence says more than the number of tokens, and an end token more than a sequence."""
    free = generate(fake_session(), max_tokens=3).tokens
    last = [row[-1] for row in free]
    assert last[1] not in (*free[1][:2], *free[0])
    assert generate(fake_session(), max_tokens=3, eos_ids=[last[1]]).finished[1] == "eos"
    assert generate(fake_session(), max_tokens=3, stop_sequences=[free[1]]).finished[1] == "stop"
    both = generate(fake_session(), max_tokens=9, eos_ids=[last[1]], stop_sequences=[last[1:2]])
    assert (both.tokens[1], both.finished[1]) == (free[1], "eos")


def test_the_padding_of_a_short_prompt_is_not_penalised(fake_session: Any) -> None:
    """Token 0 fills it up, and a row by itself has none."""
    prompts = [[1, 2, 3, 1, 2, 3], [1], [2, 3], [3, 1, 2]]
    options: dict[str, Any] = {"params": SamplingParams(repetition_penalty=1e6), "max_tokens": 1}
    batch = generate(fake_session(vocab_size=5), prompts, **options).tokens
    alone = [generate(fake_session(vocab_size=5), [prompt], **options).tokens[0] for prompt in prompts]
    assert list(batch) == alone
    assert (0,) in alone[1:]


class _Broken:
    """Logits that are not finite after some rows, as a device says it."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def argmax(self) -> np.ndarray:
        return self.tokens


def test_a_greedy_token_of_broken_logits_is_an_error(fake_session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row that goes on; after the end of one nobody looks. Token 0 is one like others."""
    session = fake_session()
    answers = iter([np.array([0, 5, 6]), np.array([0, -1, 7]), np.array([4, 0, -1])])
    monkeypatch.setattr(session, "forward", lambda *_: _Broken(next(answers)))
    made = begin(session, [[1], [2], [3]], max_tokens=9, eos_ids=[5])
    made.batch.step()
    assert made.tokens == ((0,), (5,), (6,))
    assert len(made.batch.step()) == 2
    assert made.tokens == ((0, 0), (5,), (6, 7))
    with pytest.raises(EngineError, match="logits for row 2 are not finite at step 2; check the engine"):
        made.batch.step()
    assert made.tokens == ((0, 0), (5,), (6, 7))


def test_a_row_that_its_caller_ends_at_once_says_nothing(fake_session: Any) -> None:
    free = generate(fake_session()).tokens
    made = begin(fake_session(), PROMPTS, max_tokens=12)
    made.batch.cancel(made.requests[1])
    made.batch.run()
    assert made.tokens == (free[0], (), *free[2:])
    assert made.finished == ("length", "stop", "length", "length")


def test_a_caller_can_end_a_row(fake_session: Any) -> None:
    session = fake_session()
    made = begin(session, PROMPTS[:2], max_tokens=5)
    made.batch.step()
    made.batch.cancel(made.requests[0])
    assert made.batch.step() == [made.requests[1]]
    assert session.calls[-1] == ((2, 1), [0, 1])
    made.batch.cancel(made.requests[1])
    assert not made.batch.busy
    assert made.batch.step() == []
    assert [len(tokens) for tokens in made.tokens] == [1, 2]
    assert made.finished == ("stop", "stop")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=12), min_size=1, max_size=4),
    chunk=st.integers(1, 13),
    max_tokens=st.integers(1, 8),
    eos_ids=st.sets(st.integers(0, 49), max_size=12),
    seed=st.integers(0, 3),
)
def test_any_batch_equals_its_rows(
    fake_session: Any, prompts: list[list[int]], chunk: int, max_tokens: int, eos_ids: set[int], seed: int
) -> None:
    options: dict[str, Any] = {"max_tokens": max_tokens, "eos_ids": eos_ids}
    params = SamplingParams(temperature=2.0, seed=seed) if seed else SamplingParams()
    batch = generate(fake_session(), prompts, params=params, prefill_chunk=chunk, **options)
    for row, prompt in enumerate(prompts):
        alone = generate(fake_session(), [prompt], params=params, ids=[row], **options)
        assert (alone.tokens[0], alone.finished[0]) == (batch.tokens[row], batch.finished[row])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (
            [[1] * 250],
            {"max_tokens": 7},
            "250 tokens and 7 new ones exceed the engine's context of 256; ask for at most 6 ",
        ),
        ([[1] * 256], {"max_tokens": 1}, "shorten the prompt below 256 tokens"),
        ([[1], [1] * 250, [1] * 9], {"max_tokens": 7}, "250 tokens and 7 new ones exceed"),
        ([[1]], {"max_tokens": 0}, "max-tokens is 0"),
        ([[1]], {"prefill_chunk": 0}, "prefill chunk is 0"),
        ([[1]], {"stop_sequences": [[]]}, "stop sequence is empty"),
        ([[1], [3, 50]], {}, "prompt 1 holds token 50 at position 1, outside the engine's vocabulary of 50"),
        ([[1], [-1]], {}, "prompt 1 holds token -1"),
        ([[1], []], {}, "prompt 1 is empty"),
    ],
)
def test_requests_that_are_refused(
    fake_session: Any, prompts: list[list[int]], options: dict[str, Any], message: str
) -> None:
    session = fake_session()
    with pytest.raises(UsageError, match=message):
        generate(session, prompts, **options)
    assert session.calls == []


def test_the_whole_context_can_be_used(fake_session: Any) -> None:
    assert len(generate(fake_session(), [[1] * 250], max_tokens=6).tokens[0]) == 6


def test_a_closed_batch_says_why_it_goes_no_further(fake_session: Any) -> None:
    made = begin(fake_session(), [[1]], max_tokens=3)
    made.batch.step()
    made.batch.close()
    with pytest.raises(EngineError, match="ended by a newer one on the same session"):
        made.batch.step()


def test_the_first_token_s_time_holds_the_cache_and_the_prompt(
    fake_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for the cache, ten for each forward call, a hundred for each choice: the clock knows nothing else."""
    now = [0]
    session = fake_session()

    def spends(seconds: int, work: Any) -> Any:
        def spend(*arguments: Any) -> Any:
            now[0] += seconds
            return work(*arguments)

        return spend

    def forward(*arguments: Any) -> Any:
        logits = compute(*arguments)
        logits.argmax = spends(100, logits.argmax)
        return logits

    compute = spends(10, session.forward)
    monkeypatch.setattr(session, "forward", forward)
    monkeypatch.setattr(session, "reset", spends(1, session.reset))
    monkeypatch.setattr("llmc.runtimes.generation.batch.time.perf_counter_ns", lambda: now[0] * 1_000_000_000)
    made = begin(session, [[1, 2, 3]], max_tokens=3, prefill_chunk=1)
    now[0] += 7  # it waits for its turn
    made.batch.run()
    timings = made.requests[0].timings
    assert timings.ttft_s == pytest.approx(7 + 1 + 3 * 10 + 100)
    assert timings.itl_s == pytest.approx([110, 110])


def test_nothing_heavy_is_imported() -> None:
    code = """
import sys
import llmc.runtimes.session.padding, llmc.runtimes.session.sampling, llmc.runtimes.generation.batch
import llmc.runtimes.generation.text, llmc.runtimes.generation.chat, llmc.runtimes.generation.stream_decoder
import llmc.runtimes.reference.session
heavy = {"torch", "transformers", "onnxruntime", "tokenizers", "jinja2"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""
    assert run([sys.executable, "-c", code], check=False).returncode == 0
