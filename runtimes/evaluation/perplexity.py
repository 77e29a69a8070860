"""Quality of one model's logits against another's, over many tokens of text.

In: logits of a reference and of a candidate for the same positions. Out: :class:`Quality`.

The terms and formulas are llama-perplexity's (``--kl-divergence``). For each scored position, with ``p`` the
reference's and ``q`` the candidate's distribution and ``t`` the token that follows:

* KL divergence: ``sum p * (log p - log q)``, in nats; mean, median, 90th to 99.9th percentile, maximum.
* same top p (top-1 agreement): share of positions where both have the same most likely token.
* delta-p: ``q(t) - p(t)``; its mean and its root mean square.
* perplexity: ``exp(mean(-log p(t)))``.

Standard errors are those of a mean over independent positions; for a perplexity and for the root mean square they go
through the derivative. Percentiles between two values are NumPy's, linear. Everything is computed in float64, a few
positions at a time: what stays is one KL divergence per position and a handful of sums.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import UsageError

BLOCK_ELEMENTS = 1 << 20
NOT_FINITE = "logits that are not finite: the engine or the reference is broken"
NOTHING_COMPARED = "no positions were scored: the text is too short"
PERCENTILES = (50, 90, 95, 99, 99.9)
FloatLogits = npt.NDArray[np.floating[Any]]
Tokens = npt.NDArray[np.integer[Any]]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Quality:
    """How a candidate's logits differ from a reference's.

    Attributes:
        positions: Positions compared.
        top1_agreement: Share of positions with the same most likely token, 0 to 1.
        mean_kl: Mean KL divergence of the candidate from the reference, nats.
        median_kl, kl_p90, kl_p95, kl_p99, kl_p999, max_kl: Its percentiles and its maximum, nats.
        max_abs_error: Largest absolute difference of two logits; None where the reference's are not kept as they are.
        reference_perplexity, candidate_perplexity: None when no following tokens were given, as the next three.
        perplexity_ratio: Candidate's over reference's, the error from the paired differences.
        mean_delta_p: Mean change of the following token's probability, -1 to 1.
        rms_delta_p: Its root mean square, 0 to 1.
    """

    positions: int
    top1_agreement: Estimate
    mean_kl: Estimate
    median_kl: float
    kl_p90: float
    kl_p95: float
    kl_p99: float
    kl_p999: float
    max_kl: float
    max_abs_error: float | None
    reference_perplexity: Estimate | None
    candidate_perplexity: Estimate | None
    perplexity_ratio: Estimate | None
    mean_delta_p: Estimate | None
    rms_delta_p: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return asdict(self)


@dataclass
class _Moments:
    """Sum and sum of squares of values that are not kept (float64: enough for sums of order one over millions)."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Float64) -> None:
        self.count += values.size
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())

    @property
    def mean(self) -> Estimate:
        """Mean and its standard error; the error of a single value is not known and given as infinite."""
        mean = self.total / self.count
        if self.count < 2:
            return Estimate(mean, math.inf)
        variance = max(0.0, self.squares / self.count - mean * mean) * self.count / (self.count - 1)
        return Estimate(mean, math.sqrt(variance / self.count))

    def exponential(self) -> Estimate:
        """``exp(mean)`` with the error carried through the derivative."""
        mean = self.mean
        return Estimate(math.exp(mean.value), math.exp(mean.value) * mean.error)


class PerplexityMeter:
    """Perplexity of one model, collected chunk by chunk."""

    def __init__(self) -> None:
        self._nll = _Moments()

    def update(self, logits: FloatLogits, targets: Tokens) -> None:
        """Add positions: logits [positions, vocab] and the token that follows each, [positions] integers.

        Raises:
            UsageError: shapes that disagree, a target outside the vocabulary, logits that are not finite.
        """
        _check_shapes(logits, logits, targets)
        rows = max(1, BLOCK_ELEMENTS // logits.shape[1])
        for start in range(0, len(logits), rows):
            block = targets[start : start + rows]
            loss = -log_softmax(logits[start : start + rows])[np.arange(len(block)), block]
            if not np.isfinite(loss).all():
                raise UsageError(NOT_FINITE)
            self._nll.add(loss)

    def result(self) -> Estimate:
        """Perplexity with its standard error.

        Raises:
            UsageError: nothing was added.
        """
        if not self._nll.count:
            raise UsageError(NOTHING_COMPARED)
        return self._nll.exponential()


class ScoreCollection:
    """What was found at each position, collected block by block; :meth:`result` may be asked at any time."""

    def __init__(self) -> None:
        self._agreement = _Moments()
        self._kl: list[Float64] = []
        self._kl_moments = _Moments()
        self._reference_nll, self._candidate_nll, self._nll_difference = _Moments(), _Moments(), _Moments()
        self._delta_p, self._delta_p_squared = _Moments(), _Moments()

    def add(self, kl: Float64, same: npt.NDArray[np.bool_]) -> None:
        """Divergences of some positions, [positions] nats, and whether the most likely token is the same."""
        self._agreement.add(same.astype(np.float64))
        self._kl.append(kl)
        self._kl_moments.add(kl)

    def add_targets(self, log_p: Float64, log_q: Float64) -> None:
        """Logarithm of the following token's probability, the reference's and the candidate's, [positions] each."""
        self._reference_nll.add(-log_p)
        self._candidate_nll.add(-log_q)
        self._nll_difference.add(log_p - log_q)
        change = np.exp(log_q) - np.exp(log_p)
        self._delta_p.add(change)
        self._delta_p_squared.add(np.square(change))

    def require_alike(self, targets: Tokens | None) -> None:
        """Refuse targets where those before had none, or none where those before had some.

        Raises:
            UsageError: they are given for some positions only.
        """
        if self._agreement.count and (targets is None) != (self._reference_nll.count == 0):
            raise UsageError("following tokens must be given for every chunk or for none")

    def result(self, max_abs_error: float | None) -> Quality:
        """The statistics of everything added so far.

        Raises:
            UsageError: nothing was added.
        """
        if not self._agreement.count:
            raise UsageError(NOTHING_COMPARED)
        kl = np.concatenate(self._kl)
        scored = self._reference_nll.count > 0
        median, p90, p95, p99, p999 = (float(value) for value in np.percentile(kl, PERCENTILES))
        return Quality(
            positions=self._agreement.count,
            top1_agreement=self._agreement.mean,
            mean_kl=self._kl_moments.mean,
            median_kl=median,
            kl_p90=p90,
            kl_p95=p95,
            kl_p99=p99,
            kl_p999=p999,
            max_kl=float(kl.max()),
            max_abs_error=max_abs_error,
            reference_perplexity=self._reference_nll.exponential() if scored else None,
            candidate_perplexity=self._candidate_nll.exponential() if scored else None,
            perplexity_ratio=self._nll_difference.exponential() if scored else None,
            mean_delta_p=self._delta_p.mean if scored else None,
            rms_delta_p=self._rms_delta_p() if scored else None,
        )

    def _rms_delta_p(self) -> Estimate:
        square = self._delta_p_squared.mean
        root = math.sqrt(square.value)
        return Estimate(root, square.error / (2 * root) if root > 0 else 0.0)


class LogitsComparison:
    """Collects the statistics chunk by chunk; :meth:`result` may be asked at any time."""

    def __init__(self) -> None:
        self._scores = ScoreCollection()
        self._max_abs_error = 0.0

    def update(self, reference: FloatLogits, candidate: FloatLogits, targets: Tokens | None = None) -> None:
        """Add positions.

        Args:
            reference: Logits, [positions, vocab], any floating type; not changed.
            candidate: The same shape.
            targets: The token that follows each position, [positions] integers; None: no perplexity.

        Raises:
            UsageError: shapes that disagree, a target outside the vocabulary, logits that are not finite, or targets
                given for some chunks only.
        """
        _check_shapes(reference, candidate, targets)
        positions, vocab = reference.shape
        self._scores.require_alike(targets)
        rows = max(1, BLOCK_ELEMENTS // vocab)
        for start in range(0, positions, rows):
            part = slice(start, start + rows)
            self._add(reference[part], candidate[part], None if targets is None else targets[part])

    def _add(self, reference: FloatLogits, candidate: FloatLogits, targets: Tokens | None) -> None:
        error = float(np.max(np.abs(np.subtract(reference, candidate, dtype=np.float64))))
        if not math.isfinite(error):
            raise UsageError(NOT_FINITE)
        self._max_abs_error = max(self._max_abs_error, error)
        log_p, log_q = log_softmax(reference), log_softmax(candidate)
        # Rounding can leave a sum a few 1e-16 below zero, which no divergence is.
        kl = np.maximum(0.0, np.einsum("ij,ij->i", np.exp(log_p), log_p - log_q))
        self._scores.add(kl, reference.argmax(axis=1) == candidate.argmax(axis=1))
        if targets is not None:
            index = np.arange(len(targets)), targets
            self._scores.add_targets(log_p[index], log_q[index])

    def result(self) -> Quality:
        """The statistics of everything added so far.

        Raises:
            UsageError: nothing was added.
        """
        return self._scores.result(self._max_abs_error)


def log_softmax(logits: FloatLogits) -> Float64:
    """Logarithm of the softmax over the last axis, float64, a fresh array of ``logits``' shape."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _check_shapes(reference: FloatLogits, candidate: FloatLogits, targets: Tokens | None) -> None:
    if reference.ndim != 2 or reference.shape != candidate.shape:
        raise UsageError(f"logits must be [positions, vocab] alike, got {reference.shape} and {candidate.shape}")
    if targets is None:
        return
    if targets.shape != reference.shape[:1]:
        raise UsageError(f"following tokens have shape {targets.shape}, the logits have {len(reference)} positions")
    if targets.size and (targets.min() < 0 or targets.max() >= reference.shape[1]):
        raise UsageError(f"a following token is outside the vocabulary of {reference.shape[1]}")
