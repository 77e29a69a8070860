import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation import perplexity as perplexity_module
from llmc.runtimes.evaluation.perplexity import LogitsComparison, PerplexityMeter, log_softmax
from llmc.runtimes.evaluation.quality import evaluate, make_windows, perplexity, window_logits

from .comparison import compare_logits


def logits(rows, vocab=11, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, vocab)).astype(np.float32) * 3


def test_equal_logits_have_no_divergence():
    values, targets = logits(20), np.arange(20) % 11
    quality = compare_logits(values, values.copy(), targets)
    assert quality.mean_kl.value == quality.max_kl == quality.max_abs_error == 0
    assert quality.top1_agreement.value == 1
    assert quality.top1_agreement.error == 0
    assert quality.perplexity_ratio.value == 1
    assert quality.rms_delta_p.value == 0
    assert quality.reference_perplexity == quality.candidate_perplexity
    json.dumps(quality.to_json())


def test_against_a_hand_calculation():
    """A pair whose divergence depends on the direction: 0.635 nats, the other way it would be 0.676."""
    reference = np.log(np.array([[0.7, 0.2, 0.1], [0.8, 0.1, 0.1]]))
    candidate = np.log(np.array([[0.2, 0.3, 0.5], [0.8, 0.1, 0.1]]))
    quality = compare_logits(reference, candidate, np.array([0, 0]))
    kl = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.5)
    assert quality.positions == 2
    assert quality.max_kl == pytest.approx(kl)
    assert quality.mean_kl.value == pytest.approx(kl / 2)
    assert quality.top1_agreement.value == 0.5
    assert quality.max_abs_error == pytest.approx(math.log(5))
    assert quality.reference_perplexity.value == pytest.approx((0.7 * 0.8) ** -0.5)
    assert quality.candidate_perplexity.value == pytest.approx((0.2 * 0.8) ** -0.5)
    assert quality.perplexity_ratio.value == pytest.approx((0.7 / 0.2) ** 0.5)
    assert quality.rms_delta_p.value == pytest.approx(math.sqrt(0.5**2 / 2))


def test_standard_errors():
    reference, candidate, targets = logits(200), logits(200, seed=1), np.arange(200) % 11
    quality = compare_logits(reference, candidate, targets)
    share = quality.top1_agreement.value
    assert 0 < share < 1
    assert quality.top1_agreement.error == pytest.approx(math.sqrt(share * (1 - share) / 199))
    nll = -log_softmax(reference)[np.arange(200), targets]
    assert quality.reference_perplexity.error == pytest.approx(
        math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(200), rel=1e-9
    )


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), cut=st.integers(0, 40), block=st.integers(1, 200))
def test_chunks_and_blocks_do_not_change_the_result(rows, cut, block):
    reference, candidate, targets = logits(rows), logits(rows, seed=1), np.arange(rows) % 11
    whole = compare_logits(reference, candidate, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perplexity_module, "BLOCK_ELEMENTS", block)
        parts = [part for part in (slice(0, min(cut, rows)), slice(min(cut, rows), rows)) if part.start < part.stop]
        split = compare_logits((reference[p] for p in parts), (candidate[p] for p in parts), targets)
    for one, other in zip(np.ravel(_numbers(whole)), np.ravel(_numbers(split)), strict=True):
        assert one == pytest.approx(other, rel=1e-9, nan_ok=True)


def _numbers(quality):
    flat = []
    for value in quality.to_json().values():
        flat += list(value.values()) if isinstance(value, dict) else [value]
    return flat


def test_a_constant_added_to_all_logits_changes_no_probability():
    values = logits(10)
    quality = compare_logits(values, values + 100.0, np.zeros(10, int))
    assert quality.max_kl == pytest.approx(0, abs=1e-9)
    assert quality.max_abs_error == pytest.approx(100, rel=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="alike"):
        compare_logits(logits(3), logits(4))
    with pytest.raises(UsageError, match="outside the vocabulary"):
        compare_logits(logits(1), logits(1), np.array([11]))
    with pytest.raises(UsageError, match="not finite"):
        compare_logits(logits(1), logits(1) * np.nan)
    with pytest.raises(UsageError, match="not finite"):
        PerplexityMeter().update(logits(1) * np.nan, np.array([0]))
    comparison = LogitsComparison()
    comparison.update(logits(1), logits(1))
    with pytest.raises(UsageError, match="for every chunk or for none"):
        comparison.update(logits(1), logits(1), np.array([0]))
    with pytest.raises(UsageError, match="no positions"):
        LogitsComparison().result()


def counting_text(length, vocab=32):
    return np.arange(length) % vocab


def test_logits_are_scored_on_the_token_that_follows(fake):
    right, wrong = fake.FakeSession(logits="all"), fake.FakeSession(logits="all", shift=2)
    windows = make_windows(counting_text(64), 32)
    assert len(windows) == 2
    assert perplexity(right, windows, chunk=5).value == pytest.approx(1 + 31 * math.exp(-8), rel=1e-4)
    quality = evaluate(right, wrong, windows, chunk=7)
    assert quality.reference_perplexity.value < 1.02
    assert quality.candidate_perplexity.value > 1000
    assert quality.top1_agreement.value == 0
    # Half a window is context, and the last token has nothing after it.
    assert quality.positions == 2 * (32 - 1 - 16)


@pytest.mark.parametrize("chunk", [1, 3, 16, 100])
def test_chunk_length_and_stepping_do_not_change_the_result(fake, chunk):
    windows = make_windows(counting_text(60), 20)
    reference = fake.FakeSession(logits="all", noise=0.5, prefill_ms=0, step_ms=0)
    whole = fake.FakeSession(logits="all", noise=1.0, prefill_ms=0, step_ms=0)
    stepping = fake.FakeSession(logits="last", noise=1.0, prefill_ms=0, step_ms=0)
    one = evaluate(reference, whole, windows, first=3, chunk=64)
    other = evaluate(reference, stepping, windows, first=3, chunk=chunk, stepping=True)
    assert one.positions == 3 * 16
    assert _numbers(one) == pytest.approx(_numbers(other), rel=1e-9)


def test_sessions_that_cannot_be_compared(fake):
    windows = make_windows(counting_text(8), 8)
    every, last = fake.FakeSession(logits="all"), fake.FakeSession(logits="last")
    with pytest.raises(UsageError, match="--logits all"):
        evaluate(every, last, windows)
    with pytest.raises(UsageError, match="not the same model"):
        evaluate(every, fake.FakeSession(logits="all", vocab=33), windows)
    with pytest.raises(UsageError, match="no position"):
        evaluate(every, every, windows, first=7)
    with pytest.raises(UsageError, match="make no window"):
        make_windows(counting_text(8), 9)
    with pytest.raises(UsageError, match="--logits all"):
        next(window_logits(last, windows[0]))
