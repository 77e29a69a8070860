import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.machine.summary import Percentiles, Summary, paired_ratios


def test_summary_is_median_not_mean():
    assert Summary.of([1.0, 100.0, 2.0]) == Summary(2.0, 1.0, 100.0, 3)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50))
def test_summary_and_percentiles_are_ordered(samples):
    summary, percentiles = Summary.of(samples), Percentiles.of(samples)
    assert summary.minimum <= summary.median <= summary.maximum
    assert percentiles.p50 <= percentiles.p90 <= percentiles.p95 <= percentiles.p99
    assert percentiles.p50 == pytest.approx(summary.median)


def test_percentiles_interpolate_linearly():
    percentiles = Percentiles.of(list(np.arange(101.0)))
    assert (percentiles.p50, percentiles.p90, percentiles.p95, percentiles.p99) == (50, 90, 95, 99)
    between = Percentiles.of([70.0, 10.0, 30.0, 20.0])
    assert (between.p50, between.p90, between.p95, between.p99) == pytest.approx((25, 58, 64, 68.8))
    assert between.count == 4


def test_the_median_of_an_even_number_is_between_the_middle_two():
    assert Summary.of([8.0, 1.0, 2.0, 3.0]) == Summary(2.5, 1.0, 8.0, 4)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf], [1.0, -math.inf, 2.0]])
def test_samples_that_cannot_be_summarized_are_refused(samples):
    with pytest.raises(UsageError):
        Summary.of(samples)
    with pytest.raises(UsageError):
        Percentiles.of(samples)


def test_paired_ratios_differ_from_the_ratio_of_medians():
    ours, theirs = [10.0, 1.0, 8.0], [5.0, 1.0, 2.0]
    assert paired_ratios(ours, theirs) == (2.0, 1.0, 4.0)
    assert (
        Summary.of(paired_ratios(ours, theirs)).median == 2.0 != Summary.of(ours).median / Summary.of(theirs).median
    )


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0, 1.0], [2.0, -1.0])]
)
def test_pairs_that_do_not_match_are_refused(ours, theirs):
    with pytest.raises(UsageError):
        paired_ratios(ours, theirs)
