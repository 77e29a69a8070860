"""What charts have in common."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmc.runtimes.charts.frame import Plane, spread_apart
from llmc.runtimes.charts.scales import linear_scale, log_scale


def test_positions_are_spread() -> None:
    assert spread_apart([50, 52, 90], 10, 0, 100) == [50, 60, 90]
    assert spread_apart([95, 52, 96], 10, 0, 100) == [90, 52, 100]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9))
def test_spread_positions_keep_order_and_distance(wanted: list[float]) -> None:
    placed = spread_apart(wanted, 10, 0, 100)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    ordered = [placed[i] for i in order]
    assert all(second - first >= 10 - 1e-9 for first, second in itertools.pairwise(ordered))
    assert ordered[0] >= -1e-9
    assert ordered[-1] <= 100 + 1e-9


def test_ticks_without_room_are_left_out_from_the_left() -> None:
    places = [100, 101, 102, 1000]
    plane = Plane.within(log_scale(places, ticks=places), linear_scale([1]), top=0, bottom=10, left=0, right=300)
    assert plane.spread_ticks() == [102, 1000]
