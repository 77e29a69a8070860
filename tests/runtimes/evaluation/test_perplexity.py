"""Divergences, perplexities and their errors against sums done by hand; chunks and blocks; what is refused."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation import perplexity as perplexity_module
from llmc.runtimes.evaluation.perplexity import Estimate, LogitsComparison, PerplexityMeter, log_softmax

from .comparison import compare_logits


def logits(*rows: list[float], shift: float = 3.0) -> Any:
    """Logits of the probabilities given, [positions, vocab] float64, up to a constant that changes nothing."""
    return np.log(np.array(rows)) + shift


def losing(*losses: float) -> Any:
    """Logits of two tokens, of which the first has the loss given."""
    return logits(*([math.exp(-loss), 1 - math.exp(-loss)] for loss in losses))


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


@pytest.fixture(params=[1 << 20, 1, 4])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """All positions at once, one by one, and two by two."""
    monkeypatch.setattr(perplexity_module, "BLOCK_ELEMENTS", request.param)
    return int(request.param)


def test_the_divergence_is_the_candidates_from_the_reference() -> None:
    """KL(p || q) = 0.368 nats; the other direction would be 0.511, in bits it would be 0.531."""
    quality = compare_logits(logits([0.9, 0.1]), logits([0.5, 0.5]))
    assert quality.mean_kl.value == quality.max_kl == quality.kl_p99 == pytest.approx(0.3680642, abs=1e-7)
    other = compare_logits(logits([0.5, 0.5]), logits([0.9, 0.1]))
    assert other.mean_kl.value == pytest.approx(0.5108256, abs=1e-7)


# The most likely token is the same in the second row alone, the least likely one in none.
P = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]
Q = [[0.3, 0.1, 0.6], [0.2, 0.7, 0.1], [0.6, 0.1, 0.3]]


def test_three_positions(block: int) -> None:
    quality = compare_logits(logits(*P), logits(*Q, shift=0.0))
    each = [divergence(p, q) for p, q in zip(P, Q, strict=True)]
    assert quality.positions == 3
    assert quality.mean_kl.value == pytest.approx(sum(each) / 3)
    assert quality.mean_kl.error == pytest.approx(standard_error(each))
    assert quality.max_kl == pytest.approx(max(each))
    assert (quality.top1_agreement.value, quality.top1_agreement.error) == pytest.approx((1 / 3, 1 / 3))
    assert quality.max_abs_error == pytest.approx(3 + math.log(3)), "of logits 3 + log 0.3 and log 0.1, in the second"
    assert (quality.reference_perplexity, quality.candidate_perplexity) == (None, None)
    assert (quality.perplexity_ratio, quality.mean_delta_p, quality.rms_delta_p) == (None, None, None)


def test_each_percentile_is_its_own(block: int) -> None:
    """101 divergences, the largest first: the 99th percentile is the second, the 99.9th between it and the first."""
    reference = [[0.5, 0.5]] * 101
    candidate = [[(201 - place) / 402, (201 + place) / 402] for place in reversed(range(101))]
    each = [divergence(p, q) for p, q in zip(reference, candidate, strict=True)]
    chunks = slice(0, 40), slice(40, 101)
    left, right = logits(*reference), logits(*candidate)
    quality = compare_logits((left[part] for part in chunks), (right[part] for part in chunks))
    assert quality.kl_p99 == pytest.approx(each[1])
    assert quality.max_kl == pytest.approx(each[0])
    assert (quality.median_kl, quality.kl_p90, quality.kl_p95) == pytest.approx((each[50], each[10], each[5]))
    assert quality.kl_p999 == pytest.approx(0.9 * each[0] + 0.1 * each[1])
    assert each[0] > 1.01 * each[1] > 1.1 * each[10]


def test_perplexities_and_their_errors(block: int) -> None:
    """Losses 1, 2, 6 and 2, 2, 8: means 3 and 4, standard errors sqrt(7/3) and 2, of the differences sqrt(1/3)."""
    reference, candidate, targets = losing(1, 2, 6), losing(2, 2, 8), np.zeros(3, int)
    quality = compare_logits(reference, candidate, targets)
    assert quality.reference_perplexity == Estimate(
        pytest.approx(math.exp(3)), pytest.approx(math.exp(3) * math.sqrt(7 / 3))
    )
    assert quality.candidate_perplexity == Estimate(pytest.approx(math.exp(4)), pytest.approx(math.exp(4) * 2))
    assert quality.perplexity_ratio == Estimate(pytest.approx(math.e), pytest.approx(math.e * math.sqrt(1 / 3)))
    changes = [math.exp(-b) - math.exp(-a) for a, b in ((1, 2), (2, 2), (6, 8))]
    assert quality.mean_delta_p == Estimate(pytest.approx(sum(changes) / 3), pytest.approx(standard_error(changes)))
    squares = [(math.exp(-b) - math.exp(-a)) ** 2 for a, b in ((1, 2), (2, 2), (6, 8))]
    root = math.sqrt(sum(squares) / 3)
    assert quality.rms_delta_p == Estimate(pytest.approx(root), pytest.approx(standard_error(squares) / (2 * root)))
    meter = PerplexityMeter()
    meter.update(reference[:1], targets[:1])
    meter.update(reference[1:], targets[1:])
    assert meter.result() == Estimate(pytest.approx(math.exp(3)), pytest.approx(math.exp(3) * math.sqrt(7 / 3)))


def test_each_position_has_its_own_target(block: int) -> None:
    targets = np.array([1, 0, 2])
    quality = compare_logits(logits(*P), logits(*Q), targets)
    assert quality.reference_perplexity is not None
    assert quality.reference_perplexity.value == pytest.approx((0.2 * 0.1 * 0.5) ** (-1 / 3))
    meter = PerplexityMeter()
    meter.update(logits(*Q), targets)
    assert meter.result().value == pytest.approx((0.1 * 0.2 * 0.3) ** (-1 / 3))
    chunks = [logits(*P)[:1], logits(*P)[1:2], logits(*P)[2:]]
    chunked = compare_logits(iter(chunks), iter(chunks), targets)
    assert chunked.reference_perplexity is not None
    assert chunked.reference_perplexity.value == pytest.approx(quality.reference_perplexity.value)


def test_the_error_of_one_position_is_not_known() -> None:
    quality = compare_logits(losing(1), losing(2), np.zeros(1, int))
    assert quality.reference_perplexity == Estimate(pytest.approx(math.e), math.inf)
    assert quality.top1_agreement.error == math.inf


def test_the_error_of_two_positions_is_known() -> None:
    """Losses 1 and 3: their standard deviation is sqrt(2), the standard error of their mean 1."""
    quality = compare_logits(losing(1, 3), losing(2, 2), np.zeros(2, int))
    assert quality.reference_perplexity == Estimate(pytest.approx(math.exp(2)), pytest.approx(math.exp(2)))


def test_a_chunk_without_positions_adds_nothing() -> None:
    nothing, none = np.zeros((0, 2)), np.zeros(0, int)
    quality = compare_logits([losing(1), nothing, losing(3)], [losing(1), nothing, losing(3)], np.zeros(2, int))
    assert quality.positions == 2
    meter = PerplexityMeter()
    meter.update(nothing, none)
    meter.update(losing(2), np.zeros(1, int))
    assert meter.result().value == pytest.approx(math.exp(2))


@pytest.mark.parametrize(("elements", "rows"), [(1, [1] * 5), (6, [2, 2, 1]), (8, [2, 2, 1]), (9, [3, 2]), (99, [5])])
def test_no_more_than_a_block_is_in_float64_at_once(
    monkeypatch: pytest.MonkeyPatch, elements: int, rows: list[int]
) -> None:
    """As many whole rows of three tokens as a block has elements for, and at least one."""
    seen: list[int] = []

    def record(values: Any) -> Any:
        seen.append(len(values))
        return log_softmax(values)

    monkeypatch.setattr(perplexity_module, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(perplexity_module, "log_softmax", record)
    values = np.zeros((5, 3))
    PerplexityMeter().update(values, np.zeros(5, int))
    assert seen == rows
    seen.clear()
    LogitsComparison().update(values, values)
    assert seen == [count for count in rows for _ in range(2)]


def test_no_change_of_any_probability_has_no_error() -> None:
    quality = compare_logits(losing(1, 2), losing(1, 2), np.zeros(2, int))
    assert quality.rms_delta_p == Estimate(0.0, 0.0)


def test_the_largest_error_may_be_in_any_block_and_of_either_sign(block: int) -> None:
    values = np.zeros((4, 2))
    for place, difference in ((0, -5.0), (3, 4.0)):
        changed = values.copy()
        changed[place, 1] = difference
        assert compare_logits(values, changed).max_abs_error == abs(difference)
        changed[1, 0] = 0.5
        assert compare_logits(values, changed).max_abs_error == abs(difference)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_log_softmax_is_computed_in_float64_and_changes_nothing(dtype: Any) -> None:
    values = np.array([[1000, 0, 999], [-1000, -1002, -2000]], dtype)
    kept = values.copy()
    wanted = [[-math.log1p(math.exp(-1)), -1000 - math.log1p(math.exp(-1)), -1 - math.log1p(math.exp(-1))]]
    wanted += [[-math.log1p(math.exp(-2)), -2 - math.log1p(math.exp(-2)), -1000 - math.log1p(math.exp(-2))]]
    found = log_softmax(values)
    assert found.dtype == np.float64
    assert found == pytest.approx(np.array(wanted), rel=1e-13)
    assert (values == kept).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_single_number_that_is_not_finite_is_refused(block: int, bad: float, side: int) -> None:
    pair = [logits(*P), logits(*P)]
    pair[side][2, 1] = bad
    with pytest.raises(UsageError, match="not finite"):
        compare_logits(*pair)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_no_perplexity(block: int, bad: float) -> None:
    values = logits(*P)
    values[2, 1] = bad
    with pytest.raises(UsageError, match="not finite"):
        PerplexityMeter().update(values, np.array([0, 0, 1]))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 1, 3], "outside the vocabulary of 3"),
        ([0, -1, 1], "outside the vocabulary of 3"),
        ([0, 1], r"have shape \(2,\), the logits have 3 positions"),
        ([[0, 1, 2]], r"have shape \(1, 3\), the logits have 3 positions"),
    ],
)
def test_targets_that_do_not_fit(targets: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LogitsComparison().update(logits(*P), logits(*Q), np.array(targets))
    with pytest.raises(UsageError, match=message):
        PerplexityMeter().update(logits(*P), np.array(targets))


def test_logits_that_do_not_fit() -> None:
    for other in (logits(*P[:2]), logits(*(row[:2] for row in P)), logits(*P)[None]):
        with pytest.raises(UsageError, match=r"logits must be \[positions, vocab\] alike"):
            LogitsComparison().update(logits(*P), other)
    with pytest.raises(UsageError, match="alike"):
        LogitsComparison().update(logits(*P)[0], logits(*P)[0])


@pytest.mark.parametrize("first", [True, False])
def test_targets_come_with_every_chunk_or_with_none(first: bool) -> None:
    comparison = LogitsComparison()
    comparison.update(losing(1), losing(1), np.zeros(1, int) if first else None)
    with pytest.raises(UsageError, match="for every chunk or for none"):
        comparison.update(losing(1), losing(1), None if first else np.zeros(1, int))


def test_nothing_scored_is_no_figure() -> None:
    with pytest.raises(UsageError, match="no positions were scored"):
        PerplexityMeter().result()
    with pytest.raises(UsageError, match="no positions were scored"):
        LogitsComparison().result()
