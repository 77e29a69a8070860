"""Intervals of a shift that hold for few samples of any distribution.

In: differences of pairs, or two groups of samples. Out: :class:`Interval`, the Hodges-Lehmann estimate and bounds
that the true shift exceeds with no more than a stated probability each.

Pairs: the engines of a pair are started, measured and stopped together, in an order that changes from pair to pair.
If one of them differs from the other by a shift alone, the differences lie symmetrically around it, whatever the
noise looks like: heavy tails, two modes, drift between pairs. Under symmetry the signs of the ranked differences are
coin flips, so the distribution of Wilcoxon's signed-rank statistic is known exactly (Hollander, Wolfe, Chicken,
Nonparametric Statistical Methods, 3.1 to 3.3), for five pairs as for fifty. A bootstrap interval of a median, in
contrast, covers too little of few samples, and a t interval is at the mercy of one disturbed run.

Groups: the same with the Mann-Whitney statistic (4.1 to 4.3), whose condition is stronger: both groups were measured
under the same conditions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A shift, and bounds of it; infinite where the samples are too few for the probability asked for."""

    estimate: float
    low: float
    high: float


def shift_of_pairs(differences: Sequence[float], error: float) -> Interval:
    """Where paired differences lie.

    Args:
        differences: [n], one of each pair, at least one.
        error: Probability that the low bound is too high, and that the high one is too low: each.
    """
    values = np.asarray(differences, np.float64)
    upper = np.triu_indices(values.size)
    return _bounds((values[upper[0]] + values[upper[1]]) / 2, _cut(_signed_rank(values.size), error))


def shift_of_groups(samples: Sequence[float], others: Sequence[float], error: float) -> Interval:
    """How far ``samples`` [n] lie above ``others`` [m]; ``error`` as in :func:`shift_of_pairs`."""
    differences = np.subtract.outer(np.asarray(samples, np.float64), np.asarray(others, np.float64))
    return _bounds(differences.ravel(), _cut(_rank_sum(len(samples), len(others)), error))


def pairs_needed(error: float) -> int:
    """The fewest pairs that can give a finite bound: with fewer, even equal signs are likelier than ``error``."""
    return max(1, math.ceil(-math.log2(error)))


def _bounds(candidates: Float64, cut: int | None) -> Interval:
    """Of the averages or differences of all pairs of samples, leave ``cut`` away at each end."""
    ordered = np.sort(candidates)
    estimate = float(np.median(ordered))
    if cut is None:
        return Interval(estimate, -math.inf, math.inf)
    return Interval(estimate, float(ordered[cut]), float(ordered[-1 - cut]))


def _cut(probabilities: Float64, error: float) -> int | None:
    """The largest value that a statistic does not exceed with more than this probability; None: there is none."""
    within = np.flatnonzero(np.cumsum(probabilities) <= error)
    return int(within[-1]) if within.size else None


@functools.lru_cache(maxsize=64)
def _signed_rank(count: int) -> Float64:
    """[n (n + 1) / 2 + 1]: probability of each sum of the ranks that have a plus."""
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, count + 1):
        moved = np.zeros_like(chances)
        moved[rank:] = chances[:-rank]
        chances = (chances + moved) / 2
    return chances


@functools.lru_cache(maxsize=64)
def _rank_sum(count: int, others: int) -> Float64:
    """[n m + 1]: probability of each number of pairs (sample, other) in which the sample is the larger one.

    The counts are the coefficients of the product over i = 1 … n of (1 - x^(m + i)) / (1 - x^i), in whole numbers.
    """
    counts = [1] + [0] * (count * others)
    for factor in range(1, count + 1):
        for at in range(len(counts) - 1, others + factor - 1, -1):
            counts[at] -= counts[at - others - factor]
        for at in range(factor, len(counts)):
            counts[at] += counts[at - factor]
    total = math.comb(count + others, count)
    return np.array([number / total for number in counts])
