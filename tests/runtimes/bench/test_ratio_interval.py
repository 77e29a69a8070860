"""The bootstrap interval of a median ratio: by hand where that is possible, and how often it holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.ratio_interval import RatioInterval, ratio_interval


def bounds(ratios: list[float], **options: float) -> tuple[float, float]:
    interval = ratio_interval(ratios, **options)  # type: ignore[arg-type]
    assert interval is not None
    return interval.low, interval.high


def test_one_round_says_nothing_of_its_spread() -> None:
    assert ratio_interval([1.5]) is None
    assert ratio_interval([]) is None


def test_equal_rounds_have_no_width() -> None:
    assert ratio_interval([2.0] * 5) == RatioInterval(2.0, 2.0, 0.95, 5, 10_000)


def test_two_rounds_give_both() -> None:
    """A quarter of the draws is one of them twice: more than the 2.5 % at either side."""
    assert bounds([1.0, 3.0]) == (1.0, 3.0)
    assert bounds([1.0, 3.0], confidence=0.4) == (2.0, 2.0)


def test_three_rounds_by_hand() -> None:
    """The median of 3 draws of 3 is the least one where 2 or 3 of them are: 7 of 27, and as often the most."""
    assert bounds([1.0, 2.0, 5.0], confidence=1 - 2 * 6 / 27) == (1.0, 5.0)
    assert bounds([1.0, 2.0, 5.0], confidence=1 - 2 * 8 / 27) == (2.0, 2.0)


def test_the_order_of_the_rounds_plays_no_part() -> None:
    ratios = [1.02, 0.97, 1.10, 1.01, 0.99, 1.00, 1.04]
    assert ratio_interval(ratios) == ratio_interval(sorted(ratios, reverse=True))
    assert ratio_interval(ratios) == ratio_interval(ratios)


def test_a_disturbed_round_does_not_move_it() -> None:
    calm = [1.00, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08]
    assert bounds([*calm[:-1], 50.0])[1] < 1.10


def test_more_confidence_is_no_narrower_and_more_rounds_no_wider() -> None:
    ratios = list(np.random.default_rng(3).lognormal(0.0, 0.05, 40))
    wide, narrow = bounds(ratios[:10], confidence=0.99), bounds(ratios[:10], confidence=0.8)
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1]
    few, many = bounds(ratios[:8]), bounds(ratios)
    assert many[1] - many[0] < few[1] - few[0]


@pytest.mark.parametrize("rounds", [8, 15])
def test_it_holds_the_truth_as_often_as_it_says(rounds: int) -> None:
    """200 benchmarks with a true ratio of 1.1 and noise of 5 % whose large errors are frequent."""
    noise = np.random.default_rng(rounds).standard_t(3, (200, rounds)) * 0.05
    held = [low <= 1.1 <= high for low, high in (bounds(list(1.1 * np.exp(row))) for row in noise)]
    assert 0.91 <= np.mean(held) <= 0.99


def test_above_and_below() -> None:
    interval = RatioInterval(0.97, 1.02, 0.95, 5, 10)
    assert (interval.above(0.96), interval.above(0.97), interval.above(1.0)) == (True, False, False)
    assert (interval.below(1.03), interval.below(1.02), interval.below(1.0)) == (True, False, False)


@pytest.mark.parametrize("options", [{"confidence": 0.0}, {"confidence": 1.0}, {"resamples": 0}])
def test_intervals_that_make_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="between 0 and 1 and at least 1 draw"):
        ratio_interval([1.0, 2.0], **options)  # type: ignore[arg-type]
