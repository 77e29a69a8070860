"""Positions and ticks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtimes.charts.scales import MOST_TICKS, linear_scale, log_scale

POSITIVE = st.floats(1e-6, 1e12)


def test_a_linear_scale_begins_at_zero() -> None:
    scale = linear_scale([3.0, 228.0]).between(10, 110)
    assert (scale.low, scale.high, scale.ticks) == (0.0, 250.0, (0.0, 50.0, 100.0, 150.0, 200.0, 250.0))
    assert (scale(0), scale(125), scale(250), scale(999)) == (10, 60, 110, 110)


def test_a_logarithmic_scale() -> None:
    scale = log_scale([1.0, 100.0]).between(0, 100)
    assert scale.ticks == (1.0, 10.0, 100.0)
    assert scale(10) == pytest.approx(50)
    assert 0 < scale(1) < 10
    assert scale(0) == 0
    assert log_scale([1, 2, 16], ticks=[1, 2, 16]).ticks == (1, 2, 16)
    assert log_scale([1.1, 1.9]).ticks == (1.2, 1.4, 1.6, 1.8)


@given(st.lists(POSITIVE, min_size=1))
def test_every_value_has_a_place(values: list[float]) -> None:
    for scale in (linear_scale(values), log_scale(values)):
        placed = scale.between(5, 25)
        order = sorted(values)
        positions = [placed(value) for value in order]
        assert positions == sorted(positions)
        assert all(5 <= position <= 25 for position in positions)
        assert scale.low <= order[0] * (1 + 1e-9)
        assert order[-1] <= scale.high * (1 + 1e-9)
        assert 1 <= len(scale.ticks) <= MOST_TICKS + 1
        assert all(scale.low <= tick <= scale.high * (1 + 1e-9) for tick in scale.ticks)


def test_nothing_to_show_is_a_scale_all_the_same() -> None:
    assert linear_scale([]).high == 1.0
    assert log_scale([]).ticks
    assert len(log_scale([5.0]).ticks) >= 2
