import numpy as np
import pytest

from llmc.runtimes.bench.load.distribution import Bounds, Distribution, percentile_bounds


def test_percentiles_are_linear_between_ranks() -> None:
    found = Distribution.of([4.0, 1.0, 3.0, 2.0])
    assert found is not None
    assert (found.p50, found.mean, found.minimum, found.maximum, found.count) == (2.5, 2.5, 1.0, 4.0, 4)
    assert found.p90 == pytest.approx(3.7)


def test_of_nothing_there_is_none() -> None:
    assert Distribution.of([]) is None


def test_gaps_of_one_answer_have_no_bounds() -> None:
    found = Distribution.of([1.0, 2.0], independent=False)
    assert found is not None
    assert found.bounds == {}
    assert not found.is_open("p99")


@pytest.mark.parametrize(("share", "fewest"), [(0.50, 6), (0.90, 36), (0.95, 72), (0.99, 368)])
def test_how_many_samples_an_upper_bound_takes(share: float, fewest: int) -> None:
    assert percentile_bounds(np.arange(fewest - 1.0), share).high is None
    assert percentile_bounds(np.arange(float(fewest)), share).high == fewest - 1


def test_bounds_of_a_median_are_those_of_tables() -> None:
    # Order statistics 2 and 9 hold the median of 10 with 97.9 %, 3 and 8 only with 89 %.
    assert percentile_bounds(np.arange(1.0, 11.0), 0.5) == Bounds(2.0, 9.0)
    assert percentile_bounds(np.array([5.0]), 0.5) == Bounds(None, None)


def test_bounds_hold_the_true_percentile_in_95_of_100_runs() -> None:
    random, true = np.random.default_rng(5), -np.log(0.1)
    inside = 0
    for _ in range(1000):
        bounds = percentile_bounds(np.sort(random.exponential(size=100)), 0.9)
        inside += bounds.low is not None and bounds.high is not None and bounds.low <= true <= bounds.high
    assert 940 <= inside <= 985


def test_many_samples_are_approximated_and_agree() -> None:
    exact = percentile_bounds(np.arange(20_000.0), 0.99)
    approximate = percentile_bounds(np.arange(20_001.0), 0.99)
    assert exact.low is not None
    assert approximate.low is not None
    assert abs(exact.low - approximate.low) <= 3
