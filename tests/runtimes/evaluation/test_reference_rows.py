"""What is kept of a reference's logits: figures against those of the whole logits, sizes, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation import reference_rows as module
from llmc.runtimes.evaluation.perplexity import LogitsComparison, Quality
from llmc.runtimes.evaluation.reference_rows import LARGEST, ReferenceRows, RowsComparison

VOCAB = 8192


def logits(rows: int = 96, vocab: int = VOCAB, seed: int = 0) -> Any:
    """As a language model's: a few likely tokens, a broad rest, [rows, vocab] float32."""
    random = np.random.default_rng(seed)
    values = random.normal(-12, 2.5, (rows, vocab))
    likely = random.integers(0, vocab, (rows, 40))
    np.put_along_axis(values, likely, random.normal(0, 3, likely.shape), axis=1)
    return values.astype(np.float32)


def targets(rows: int, vocab: int = VOCAB) -> Any:
    return np.random.default_rng(9).integers(0, vocab, rows)


def both(reference: Any, candidate: Any) -> tuple[Quality, Quality]:
    """By the whole logits, and by what is kept of them."""
    following = targets(len(reference), reference.shape[1])
    whole, kept = LogitsComparison(), RowsComparison()
    whole.update(reference, candidate, following)
    kept.update(ReferenceRows.of(reference, following), candidate)
    return whole.result(), kept.result()


@pytest.mark.parametrize("noise", [0.02, 0.2, 1.0])
def test_a_mean_divergence_is_right_to_a_hundred_thousandth(noise: float) -> None:
    reference = logits()
    candidate = reference + np.random.default_rng(1).normal(0, noise, reference.shape).astype(np.float32)
    whole, kept = both(reference, candidate)
    assert kept.mean_kl.value == pytest.approx(whole.mean_kl.value, abs=1e-5)
    assert kept.mean_kl.error == pytest.approx(whole.mean_kl.error, rel=1e-2)
    for name in ("median_kl", "kl_p90", "kl_p99", "max_kl"):
        assert getattr(kept, name) == pytest.approx(getattr(whole, name), rel=5e-3, abs=1e-6)


def test_what_is_not_rounded_is_exact() -> None:
    reference = logits()
    candidate = reference + np.random.default_rng(1).normal(0, 1, reference.shape).astype(np.float32)
    whole, kept = both(reference, candidate)
    assert kept.top1_agreement == whole.top1_agreement
    assert 0 < kept.top1_agreement.value < 1
    for name in ("reference_perplexity", "candidate_perplexity", "perplexity_ratio", "mean_delta_p", "rms_delta_p"):
        one, other = getattr(kept, name), getattr(whole, name)
        assert (one.value, one.error) == pytest.approx((other.value, other.error), rel=1e-5), name
    assert kept.max_abs_error is None


@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_equal_logits_have_no_divergence(shift: float) -> None:
    """Also where all of them are larger by a constant, which changes no probability."""
    reference = logits()
    _, kept = both(reference, reference + np.float32(shift))
    assert kept.mean_kl.value == pytest.approx(0, abs=1e-6)
    assert abs(kept.max_kl) < 1e-5
    assert kept.top1_agreement.value == 1


def test_a_token_that_a_candidate_forgets_is_charged_as_it_is() -> None:
    """All of the reference's probability beyond the largest tokens may be in one that the candidate drops."""
    reference = logits(4)
    candidate = reference.copy()
    forgotten = np.argsort(-reference, axis=1)[:, LARGEST + 50]
    candidate[np.arange(4), forgotten] -= 50_000
    whole, kept = both(reference, candidate)
    assert whole.mean_kl.value > 1e-3
    assert kept.mean_kl.value == pytest.approx(whole.mean_kl.value, rel=0.05)


@pytest.mark.parametrize("vocab", [2, 40, LARGEST, LARGEST + 1])
def test_small_vocabularies(vocab: int) -> None:
    """Where all tokens are kept in float32, or all but one."""
    random = np.random.default_rng(3)
    reference, candidate = (random.normal(0, 3, (5, vocab)).astype(np.float32) for _ in range(2))
    whole, kept = both(reference, candidate)
    assert kept.mean_kl.value == pytest.approx(whole.mean_kl.value, rel=1e-5, abs=1e-6)


def test_equal_logits_everywhere() -> None:
    flat = np.zeros((2, VOCAB), np.float32)
    _, kept = both(flat, flat)
    assert kept.max_kl == pytest.approx(0, abs=1e-6)
    assert kept.reference_perplexity is not None
    assert kept.reference_perplexity.value == pytest.approx(VOCAB)


def test_what_can_never_come_has_no_probability() -> None:
    """Logits of -1e9, as some models give to tokens that are none, do not widen the steps of the others."""
    reference = logits(8)
    reference[:, :500] = -1e9
    # Flatter: what is likely among the rest becomes less so, and what is not more.
    candidate = np.where(reference < -1e8, reference, 0.8 * reference).astype(np.float32)
    whole, kept = both(reference, candidate)
    assert whole.mean_kl.value > 0.01
    assert kept.mean_kl.value == pytest.approx(whole.mean_kl.value, rel=1e-4)


def test_the_largest_are_no_part_of_the_rest() -> None:
    """Of nearly equal logits, which round to one level, the largest become less likely in the candidate."""
    reference = np.random.default_rng(5).normal(0, 1e-3, (4, 2 * LARGEST)).astype(np.float32)
    candidate = reference.copy()
    np.put_along_axis(candidate, np.argsort(-reference, axis=1)[:, :LARGEST], -1, axis=1)
    whole, kept = both(reference, candidate)
    assert kept.mean_kl.value == pytest.approx(whole.mean_kl.value, rel=1e-4)


def test_a_byte_for_each_token_and_little_more() -> None:
    rows = ReferenceRows.of(logits(4, 65536), targets(4))
    assert sum(array.nbytes for array in rows.arrays().values()) <= 4 * (65536 + 8 * LARGEST + 64)


def test_blocks_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = logits(20)
    candidate = reference + np.random.default_rng(1).normal(0, 0.5, reference.shape).astype(np.float32)
    _, whole = both(reference, candidate)
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    kept = ReferenceRows.of(reference, targets(20))
    assert len(kept) == 20
    comparison = RowsComparison()
    for part in (slice(0, 1), slice(1, 12), slice(12, 20)):
        comparison.update(kept[part], candidate[part])
    assert comparison.result().mean_kl.value == pytest.approx(whole.mean_kl.value, rel=1e-9)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    broken = logits(3)
    broken[1, 7] = bad
    with pytest.raises(UsageError, match="not finite"):
        ReferenceRows.of(broken, targets(3))
    with pytest.raises(UsageError, match="not finite"):
        RowsComparison().update(ReferenceRows.of(logits(3), targets(3)), broken)


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="not the same model"):
        RowsComparison().update(ReferenceRows.of(logits(3), targets(3)), logits(3, VOCAB + 1))
    with pytest.raises(UsageError, match="no positions"):
        RowsComparison().result()
