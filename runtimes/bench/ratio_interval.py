"""How far the median ratio of interleaved rounds can be trusted.

In: a ratio for each round, both sides of which met the same minute of the machine
(:func:`~llmc.runtimes.machine.summary.paired_ratios`). Out: :class:`RatioInterval`, by the percentile bootstrap
(Efron 1979): rounds are drawn with replacement, as many as there are, and the median is taken of each draw; the
interval holds the middle share of these medians. It makes no assumption about how the noise is distributed; that
rounds do not depend on each other is what it takes for granted.

The interval never leaves the range of the rounds. So few rounds say less than the share that is asked for: the median
of all rounds that there could be lies between the least and the most of ``n`` of them with probability
``1 - 2 ** (1 - n)``, which is 94 % for 5 rounds and 97 % for 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmc.compiler.base.errors import UsageError

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class RatioInterval:
    """Where the median of many more rounds probably lies.

    Attributes:
        low, high: Bounds of the median ratio.
        confidence: Share of the draws' medians that lie between them.
        rounds: Rounds that it was worked out from.
        resamples: Draws.
    """

    low: float
    high: float
    confidence: float
    rounds: int
    resamples: int

    def above(self, limit: float) -> bool:
        """Whether the whole interval lies above ``limit``."""
        return self.low > limit

    def below(self, limit: float) -> bool:
        """Whether the whole interval lies below ``limit``."""
        return self.high < limit


def ratio_interval(
    ratios: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = SEED
) -> RatioInterval | None:
    """The bootstrap interval of the median of ``ratios``; None of fewer than two, which say nothing of a spread.

    The bounds are medians that were drawn, the outer ones where the share falls between two. The same numbers give
    the same interval, in any order.

    Raises:
        UsageError: a share that is not between 0 and 1, or no draw.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise UsageError(
            f"an interval needs a confidence between 0 and 1 and at least 1 draw, got {confidence} and {resamples}"
        )
    if len(ratios) < 2:
        return None
    values = np.sort(np.asarray(ratios, np.float64))
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    medians = np.median(values[draws], axis=1)
    outside = (1 - confidence) / 2
    low, high = np.quantile(medians, outside, method="lower"), np.quantile(medians, 1 - outside, method="higher")
    return RatioInterval(float(low), float(high), confidence, len(values), resamples)
