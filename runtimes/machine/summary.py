"""Figures that stand for many samples.

In: samples of one quantity. Out: median with min and max, percentiles, and the ratio of samples taken in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmc.compiler.base.errors import UsageError


def _checked(samples: Sequence[float]) -> Sequence[float]:
    if not samples:
        raise UsageError("no samples to summarize: at least one run is needed")
    if not all(math.isfinite(sample) for sample in samples):
        raise UsageError("a sample is not a finite number")
    return samples


@dataclass(frozen=True)
class Summary:
    """Median, least and most of ``count`` samples, in the samples' unit.

    The median, not the mean: one disturbed run must not move the figure. Min and max show that there was one.
    """

    median: float
    minimum: float
    maximum: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarize samples.

        Raises:
            UsageError: none given, or one is not finite.
        """
        values = _checked(samples)
        return cls(float(np.median(values)), float(min(values)), float(max(values)), len(values))


@dataclass(frozen=True)
class Percentiles:
    """p50, p90, p95 and p99 of ``count`` samples, linear between ranks (NumPy's default, as vLLM's benchmark)."""

    p50: float
    p90: float
    p95: float
    p99: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Percentiles:
        """Percentiles of samples.

        Raises:
            UsageError: none given, or one is not finite.
        """
        values = _checked(samples)
        p50, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
        return cls(p50, p90, p95, p99, len(values))


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, ...]:
    """Ratio of each pair of samples taken in the same round.

    Both of a pair met the same minute of the machine, so the ratio of a round is steadier than the ratio of two
    medians: give the median of these.

    Raises:
        UsageError: different or zero lengths, or a denominator that is not positive.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise UsageError(f"pairs need as many samples on both sides, got {len(numerators)} and {len(denominators)}")
    if any(value <= 0 for value in denominators):
        raise UsageError("a ratio's denominator is not positive")
    return tuple(top / bottom for top, bottom in zip(numerators, denominators, strict=True))
