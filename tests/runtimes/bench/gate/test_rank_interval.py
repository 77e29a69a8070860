"""Exact intervals: by hand for few samples, by counting all cases, and how often they hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from llmc.runtimes.bench.gate.rank_interval import Interval, pairs_needed, shift_of_groups, shift_of_pairs


def test_three_pairs_by_hand() -> None:
    """Averages of all pairs: 1, 1.5, 2, 2.5 (of 1 and 4), 3, 4. All three signs are equal with 1/8."""
    assert shift_of_pairs([1.0, 2.0, 4.0], 1 / 8) == Interval(2.25, 1.0, 4.0)
    assert shift_of_pairs([4.0, 1.0, 2.0], 2 / 8) == Interval(2.25, 1.5, 3.0)
    assert shift_of_pairs([1.0, 2.0, 4.0], 0.124) == Interval(2.25, -math.inf, math.inf)


def test_groups_by_hand() -> None:
    """Differences: 5, 7, 8, 10. One of the six orders of two and two has no sample above another."""
    assert shift_of_groups([8.0, 11.0], [1.0, 3.0], 1 / 6) == Interval(7.5, 5.0, 10.0)
    assert shift_of_groups([8.0, 11.0], [1.0, 3.0], 2 / 6) == Interval(7.5, 7.0, 8.0)
    assert shift_of_groups([8.0, 11.0], [1.0, 3.0], 0.16).low == -math.inf


@pytest.mark.parametrize("count", [2, 5, 8])
def test_signs_are_counted(count: int) -> None:
    """For every error, the low bound is the one that at most that share of all signs puts above 0."""
    ranks = np.arange(1.0, count + 1)
    signed = [np.array(signs) * ranks for signs in itertools.product((-1, 1), repeat=count)]
    for error in (0.01, 0.05, 0.11, 0.3):
        too_high = np.mean([shift_of_pairs(values, error).low > 0 for values in signed])
        assert too_high <= error
        assert too_high == 0 or too_high > error - np.mean([(v > 0).all() for v in signed]) * 10


@pytest.mark.parametrize(("count", "others"), [(2, 3), (4, 4), (5, 2)])
def test_orders_are_counted(count: int, others: int) -> None:
    places = range(count + others)
    for error in (0.01, 0.05, 0.2):
        wrong = []
        for mine in itertools.combinations(places, count):
            theirs = [float(place) for place in places if place not in mine]
            wrong.append(shift_of_groups([float(place) for place in mine], theirs, error).low > 0)
        assert np.mean(wrong) <= error
        assert np.mean(wrong) > 0 or 1 / math.comb(count + others, count) > error


@pytest.mark.parametrize("noise", ["normal", "heavy", "modes"])
def test_bounds_fail_as_seldom_as_asked_for(noise: str) -> None:
    """A true shift of 0.3, 2,000 samples of 12 pairs: both bounds are wrong in 5 % each at most, and not never."""
    random = np.random.default_rng(11)
    draws = {
        "normal": random.standard_normal((2000, 12)),
        "heavy": random.standard_t(1.5, (2000, 12)),
        "modes": random.choice((-1.0, 1.0), (2000, 12)) + 0.1 * random.standard_normal((2000, 12)),
    }[noise]
    intervals = [shift_of_pairs(row + 0.3, 0.05) for row in draws]
    too_high = np.mean([interval.low > 0.3 for interval in intervals])
    too_low = np.mean([interval.high < 0.3 for interval in intervals])
    assert 0.025 < too_high < 0.065
    assert 0.025 < too_low < 0.065


def test_a_few_pairs_say_nothing() -> None:
    assert [pairs_needed(error) for error in (0.5, 0.25, 0.24, 0.01, 0.001)] == [1, 2, 3, 7, 10]
    for error in (0.3, 0.01, 0.001):
        number = pairs_needed(error)
        assert shift_of_pairs([1.0] * number, error).low == 1.0
        assert shift_of_pairs([1.0] * (number - 1), error).low == -math.inf or number == 1
