"""Percentiles of requests, and what they are worth.

In: samples. Out: :class:`Distribution`: the percentiles, and between which of the samples the true ones lie. A
percentile near an end needs many samples: 99 % of 100 requests is the second longest of them, and the true one is as
likely above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmc.runtimes.machine.summary import Percentiles

CONFIDENCE = 0.95
SHARES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
_EXACT = 20_000
"""Samples up to which the binomial distribution is summed, not approximated."""


@dataclass(frozen=True)
class Bounds:
    """Where a percentile lies with 95 %; None: the samples do not say, it may be beyond any of them."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Distribution:
    """Percentiles of ``count`` samples, linear between ranks (NumPy's default), in the samples' unit.

    Attributes:
        bounds: By percentile; empty where samples are not independent.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    minimum: float
    maximum: float
    count: int
    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[float], *, independent: bool = True) -> Distribution | None:
        """None of no samples."""
        if not samples:
            return None
        ordered = np.sort(np.asarray(samples, np.float64))
        shares = Percentiles.of([float(value) for value in ordered])
        bounds = {name: percentile_bounds(ordered, share) for name, share in SHARES.items()} if independent else {}
        ends = float(ordered[0]), float(ordered[-1])
        return cls(shares.p50, shares.p90, shares.p95, shares.p99, float(ordered.mean()), *ends, len(ordered), bounds)

    def is_open(self, percentile: str) -> bool:
        """Whether there are too few samples for an upper bound of it."""
        bounds = self.bounds.get(percentile)
        return bounds is not None and bounds.high is None


def percentile_bounds(ordered: npt.NDArray[np.float64], share: float) -> Bounds:
    """The two samples between which the true percentile lies with 95 %, whatever the distribution is.

    The number of samples below it is binomial, so that rank ``l`` is a lower bound where ``l`` or more are below it
    with 97.5 %, and rank ``u`` an upper one where fewer than ``u`` are.

    Args:
        ordered: [n] samples, ascending.
        share: Of the percentile, between 0 and 1.
    """
    count, error = len(ordered), (1 - CONFIDENCE) / 2
    below = _binomial_below(count, share)  # [n + 1]: chance of at most k samples below the percentile
    low = int(np.searchsorted(below, error, side="right"))  # the largest l with P(B <= l - 1) <= error
    high = int(np.searchsorted(below, 1 - error, side="left")) + 1  # the smallest u with P(B <= u - 1) >= 1 - error
    return Bounds(
        float(ordered[low - 1]) if low >= 1 else None,
        float(ordered[high - 1]) if high <= count else None,
    )


def _binomial_below(count: int, share: float) -> npt.NDArray[np.float64]:
    """[n + 1]: probability of at most k successes of ``count``."""
    successes = np.arange(count + 1)
    if count > _EXACT:
        deviation = math.sqrt(count * share * (1 - share))
        standard = (successes + 0.5 - count * share) / (deviation * math.sqrt(2))
        return np.array([0.5 * math.erfc(-value) for value in standard])
    factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    logarithms = factorials[-1] - factorials - factorials[::-1]
    logarithms = logarithms + successes * math.log(share) + (count - successes) * math.log1p(-share)
    return np.cumsum(np.exp(logarithms))
