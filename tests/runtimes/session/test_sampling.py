"""Sampling against transformers' own logits processors, and its draws against their distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import EngineError, LlmcError, UsageError
from llmc.runtimes.session.sampling import Sampler, filter_tokens, random_uniform
from llmc.runtimes.session.sampling_params import SamplingParams

FILTERS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.3, 0.7, 1.0, 1.8]),
        "top_k": st.sampled_from([0, 1, 2, 5, 50, 299, 300, 5000]),
        "top_p": st.sampled_from([1e-4, 0.3, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    }
)


def random_logits(seed: int, vocab: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab) * spread).astype(np.float32)


def reference_scores(logits: np.ndarray, params: SamplingParams, history: list[int]) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as hf

    ids, scores = torch.tensor([history], dtype=torch.long), torch.from_numpy(logits.copy())[None]
    steps = [
        (params.repetition_penalty != 1, lambda: hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)),
        (not params.greedy, lambda: hf.TemperatureLogitsWarper(params.temperature)),
        (params.top_k > 0, lambda: hf.TopKLogitsWarper(params.top_k)),
        (params.top_p < 1, lambda: hf.TopPLogitsWarper(params.top_p)),
        (params.min_p > 0, lambda: hf.MinPLogitsWarper(params.min_p)),
    ]
    for wanted, make in steps:
        if wanted:
            scores = make()(ids, scores)
    return scores[0].numpy()


@settings(max_examples=150, deadline=None)
@given(FILTERS, st.integers(0, 2**31), st.sampled_from([40, 300, 9000]))
def test_filters_keep_what_transformers_keeps(fields: dict[str, float], seed: int, vocab: int) -> None:
    params = SamplingParams(**fields)
    logits = random_logits(seed, vocab)
    expected = reference_scores(logits, params, [0])
    tokens, scaled = filter_tokens(logits, params)
    different = np.setxor1d(tokens, np.flatnonzero(np.isfinite(expected)))
    if different.size and params.top_p < 1:  # at the edge, transformers' float32 sum of probabilities may round
        assert different.size == 1
        before = np.exp(reference_scores(logits, replace(params, top_p=1.0, min_p=0.0), [0]).astype(np.float64))
        above = before[before > before[different[0]]].sum() / before.sum()
        assert above == pytest.approx(params.top_p, abs=1e-5)
    else:
        assert different.size == 0
    both = np.isfinite(expected[tokens])
    np.testing.assert_allclose(scaled[both], expected[tokens][both], rtol=1e-6)


def test_filters_of_a_large_vocabulary() -> None:
    logits = random_logits(3, 262_144, spread=2.0)
    for fields in ({"top_k": 64}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 5000, "top_p": 0.8, "min_p": 0.01}):
        params = SamplingParams(temperature=0.9, **fields)
        expected = np.flatnonzero(np.isfinite(reference_scores(logits, params, [0])))
        # transformers adds 262,144 probabilities in float32, so the last few tokens at top-p's edge are its rounding
        assert abs(len(expected) - len(filter_tokens(logits, params)[0])) <= 2 + len(expected) // 5000
        assert np.setxor1d(filter_tokens(logits, params)[0], expected).size <= 2 + len(expected) // 5000


def test_ties_at_the_kth_token_are_all_kept() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    logits[[5, 700]] = 2.0
    logits[[9, 11, 999]] = 1.0
    params = SamplingParams(temperature=1.0, top_k=3)
    assert filter_tokens(logits, params)[0].tolist() == [5, 9, 11, 700, 999]
    assert np.isfinite(reference_scores(logits, params, [0])).sum() == 5


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_logits(1, 500)
    for history in ([3, 3, 9, 499], np.argsort(logits)[::-1][:40].tolist()):
        params = SamplingParams(repetition_penalty=penalty)
        sampler = Sampler(params, 500, 0)
        sampler.observe(history[:2])
        sampler.observe(history[2:])
        before = logits.copy()
        assert sampler.sample(logits, 0) == reference_scores(logits, params, history).argmax()
        assert np.array_equal(logits, before)


def test_repetition_penalty_of_negative_logits() -> None:
    logits = np.array([-1.0, -1.5, -9.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 3, 0)
    sampler.observe([0])
    assert sampler.sample(logits, 0) == reference_scores(logits, SamplingParams(repetition_penalty=2.0), [0]).argmax()
    assert sampler.sample(logits, 0) == 1


def test_a_penalty_below_1_makes_said_tokens_likelier() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=0.5), 4, 0)
    sampler.observe([0, 3])
    assert sampler.sample(np.array([1.0, 1.9, -4.0, -3.0], dtype=np.float32), 0) == 0  # 2, 1.9, -4, -1.5
    assert sampler.sample(np.array([-9.0, -4.5, -2.0, -3.0], dtype=np.float32), 0) == 3  # -4.5, -4.5, -2, -1.5


def test_top_p_that_is_reached_exactly_takes_no_more() -> None:
    logits = np.full(600, -np.inf, dtype=np.float32)
    logits[[3, 5, 7]] = np.log(np.array([2.0, 1.0, 1.0], dtype=np.float32))
    params = SamplingParams(temperature=1.0, top_p=0.5)
    assert np.flatnonzero(np.isfinite(reference_scores(logits, params, [0]))).tolist() == [3]
    for fields in ({}, {"top_k": 100}):
        assert filter_tokens(logits, replace(params, **fields))[0].tolist() == [3]


def test_of_equally_likely_tokens_top_p_keeps_the_highest_ids() -> None:
    """As many as transformers keeps, whose sort leaves open which; the sampler on a device takes the same."""
    logits = np.full(40, -np.inf, dtype=np.float32)
    logits[[3, 9, 17, 30]] = 1.0
    logits[20] = 2.0
    params = SamplingParams(temperature=1.0, top_p=0.6)  # e of e + 4 is 0.40, and each of the others 0.15
    assert np.isfinite(reference_scores(logits, params, [0])).sum() == 3
    for fields in ({}, {"top_k": 5}):
        assert filter_tokens(logits, replace(params, **fields))[0].tolist() == [17, 20, 30]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_largest_are_found_wherever_they_stand(count: int) -> None:
    """Groups of columns bound the k-th largest from below: the largest may share one, or lie behind the last."""
    vocab = 64 * 10 + 7
    for places in ([5, 15, 25], [646, 645, 640], [0, 320, 646], [9, 639, 641]):
        logits = random_logits(1, vocab, spread=0.5)
        logits[places] = 9.0, 8.0, 7.0
        tokens, _ = filter_tokens(logits, SamplingParams(temperature=1.0, top_k=count))
        assert tokens.tolist() == sorted(places[:count])


def test_rows_remember_their_own_tokens() -> None:
    logits = np.array([1.0, 3.0, 2.5, 0.0], dtype=np.float32)
    samplers = [Sampler(SamplingParams(repetition_penalty=2.0), 4, row) for row in (0, 1)]
    samplers[1].observe([1, 77])
    assert [sampler.sample(logits, 0) for sampler in samplers] == [1, 2]


def test_what_was_said_twice_is_penalised_once() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 3, 0)
    sampler.observe([1, 1])
    assert sampler.sample(np.array([1.0, 3.0, 1.4], dtype=np.float32), 0) == 1


def test_ids_beyond_the_vocabulary_are_not_counted() -> None:
    """The first of them, too: a tokenizer may have more tokens than the model has logits."""
    logits = np.array([1.0, 3.0, 2.5, 0.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), 4, 0)
    sampler.observe([4])
    assert sampler.sample(logits, 0) == 1
    sampler.observe([3, 4, 5])
    assert sampler.sample(np.array([0.5, 0.0, 0.0, 0.9], dtype=np.float32), 0) == 0


def test_of_equal_logits_the_lowest_id_is_the_greedy_one() -> None:
    logits = np.array([0.0, 2.0, 1.0, 2.0, 2.0], dtype=np.float32)
    assert Sampler(SamplingParams(), 5, 0).sample(logits, 0) == 1
    sampler = Sampler(SamplingParams(repetition_penalty=4.0), 5, 0)
    sampler.observe([1])
    assert sampler.sample(logits, 0) == 3


@pytest.mark.parametrize(
    "fields", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.05}, {"repetition_penalty": 1.5, "top_k": 20}]
)
def test_draws_follow_the_distribution(fields: dict[str, float]) -> None:
    params = SamplingParams(temperature=1.2, seed=11, **fields)
    logits = random_logits(5, 700, spread=2.0)
    sampler = Sampler(params, 700, 4)
    sampler.observe([1, 2, 3])
    draws = [sampler.sample(logits, step) for step in range(6000)]
    scores = reference_scores(logits, params, [1, 2, 3]).astype(np.float64)
    expected = np.exp(scores - scores.max())
    expected /= expected.sum()
    counts = np.bincount(draws, minlength=700) / len(draws)
    assert counts[expected == 0].sum() == 0
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected.max() / len(draws))
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() < 1.95 / np.sqrt(len(draws))  # Kolmogorov, p = 0.001


LARGE = random_logits(4, 262_144, spread=0.3)
"""So flat that sums in float32, one token after the other, would be off by hundreds of tokens."""


def test_top_p_of_a_flat_vocabulary_is_as_exact_as_float64() -> None:
    weights = np.sort(np.exp(LARGE.astype(np.float64)))[::-1]
    mass = np.cumsum(weights) / weights.sum()
    for top_p, fields in ((0.3, {}), (0.9, {}), (0.999, {}), (0.9, {"top_k": 262_143})):
        tokens, _ = filter_tokens(LARGE, SamplingParams(temperature=1.0, top_p=top_p, **fields))
        assert abs(tokens.size - 1 - np.searchsorted(mass, top_p)) <= 2


@pytest.mark.parametrize("fields", [{}, {"top_k": 262_143}, {"min_p": 1e-6}])
def test_draws_of_a_flat_vocabulary_are_as_exact_as_float64(
    fields: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token at 0, all others at -1.1: float32 adds their weight to a large sum with the same error each time."""
    logits = np.full(LARGE.size, -1.1, dtype=np.float32)
    logits[0] = 0
    mass = np.cumsum(np.exp(logits.astype(np.float64)))
    mass /= mass[-1]
    sampler = Sampler(SamplingParams(temperature=1.0, **fields), logits.size, 0)
    for uniform in (0.1, 0.37, 0.5, 0.81, 0.999):
        monkeypatch.setattr("llmc.runtimes.session.sampling.random_uniform", lambda *_, uniform=uniform: uniform)
        assert abs(sampler.sample(logits, 0) - np.searchsorted(mass, uniform)) <= 2


def test_draws_are_what_they_were() -> None:
    """A request gives the same text in every release: upper 53 bits of Philox 4x64's first word at step + 1.

    Computed by the ten rounds of the paper in whole numbers.
    """
    words = {
        (0, 0, 0): 104003916602523,
        (1, 0, 0): 2734297772371024,
        (0, 1, 0): 7326042091893818,
        (0, 0, 1): 4525033197209392,
        (7, 3, 1000): 8982434227892605,
    }
    assert {which: random_uniform(*which) * 2**53 for which in words} == words


def test_draws_depend_on_seed_row_and_step_alone() -> None:
    draws = {random_uniform(s, r, t) for s in (0, 1, 2**64 - 1) for r in range(5) for t in range(50)}
    assert len(draws) == 3 * 5 * 50
    assert all(0 <= draw < 1 for draw in draws)
    logits = random_logits(2, 900)
    params = SamplingParams(temperature=1.0, seed=3)
    sampler, again, other = (Sampler(params, 900, row_id) for row_id in (9, 9, 8))
    text = [sampler.sample(logits, step) for step in range(20)]
    assert text == [again.sample(logits, step) for step in reversed(range(20))][::-1]
    assert text != [other.sample(logits, step) for step in range(20)]
    assert len(set(text)) > 5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_draw_never_takes_a_token_without_probability(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.runtimes.session.sampling.random_uniform", lambda *_: uniform)
    logits = np.full(2000, -np.inf, dtype=np.float32)
    logits[[600, 1500]] = 0.5
    for fields in ({}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert Sampler(SamplingParams(temperature=1.0, **fields), 2000, 0).sample(logits, 0) in (600, 1500)


def test_a_draw_at_the_end_of_a_block_stays_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are added up in another order than their tokens, so a draw may seem to lie behind the last of them."""
    logits = random_logits(6, 4 * 512, spread=1.0)
    logits[511::512] = -np.inf  # where a draw behind the end of its block would land
    weights = np.exp(logits - logits.max())
    ends = np.cumsum(np.add.reduceat(weights, np.arange(0, 2048, 512)), dtype=np.float64)
    inside = [np.cumsum(weights[start : start + 512], dtype=np.float64)[-1] for start in range(0, 2048, 512)]
    longer = int(np.argmax(np.diff(ends, prepend=0) - inside))
    assert ends[longer] - ends[longer - 1] * (longer > 0) > inside[longer]
    monkeypatch.setattr(
        "llmc.runtimes.session.sampling.random_uniform", lambda *_: ends[longer] / ends[-1] * (1 - 2.0**-52)
    )
    token = Sampler(SamplingParams(temperature=1.0), 2048, 0).sample(logits, 0)
    assert token == 512 * longer + 510


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.1),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=3),
    ],
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_reported(params: SamplingParams, bad: float) -> None:
    logits = random_logits(0, 100)
    logits[40] = bad
    with pytest.raises(EngineError, match="row 0 are not finite at step 5"):
        Sampler(params, 100, 0).sample(logits, 5)
    with pytest.raises(EngineError, match="row 0 are not finite at step 0"):
        Sampler(params, 100, 0).sample(np.full(100, -np.inf, dtype=np.float32), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e308}, r"temperature is 1e\+308: it must be 0 \(greedy\) or .* from 1e-06 to 1e\+06"),
        ({"temperature": 1e-308}, "temperature is 1e-308"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.01}, "top-p is 1.01"),
        ({"top_p": float("nan")}, "top-p is nan"),
        ({"min_p": 1.5}, "min-p is 1.5"),
        ({"min_p": -0.01}, "min-p is -0.01"),
        ({"min_p": float("nan")}, "min-p is nan"),
        ({"repetition_penalty": 0.0}, "repetition penalty is 0.0"),
        ({"repetition_penalty": -1.1}, "repetition penalty is -1.1"),
        ({"repetition_penalty": float("inf")}, "repetition penalty is inf"),
        ({"repetition_penalty": 1e308}, r"repetition penalty is 1e\+308: it must be positive, from 1e-06 to 1e\+06"),
        ({"repetition_penalty": 1e-308}, "repetition penalty is 1e-308"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "below 2\\^64"),
    ],
)
def test_parameters_out_of_range(fields: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        SamplingParams(**fields)
    assert isinstance(caught.value, LlmcError)


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"top_p": 1.0}, {"min_p": 0.0}, {"min_p": 1.0}, {"seed": 0}, {"seed": 2**64 - 1}]
)
def test_parameters_at_the_ends_of_their_ranges(fields: dict[str, float]) -> None:
    SamplingParams(**fields)


def test_greedy_needs_no_logits_on_the_host() -> None:
    assert not SamplingParams().needs_logits
    assert SamplingParams(repetition_penalty=1.1).needs_logits
    assert SamplingParams(temperature=0.5).needs_logits
