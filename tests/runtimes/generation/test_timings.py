"""Clock readings of a request in the field's terms."""

from __future__ import annotations

import pytest

from llmc.runtimes.generation.timings import Timings


def after(*moments: int) -> Timings:
    timings = Timings()
    for moment in moments:
        timings.tick(moment)
    return timings


def test_times_are_the_terms_of_the_field() -> None:
    timings = after(1_000_000_000, 1_250_000_000, 1_270_000_000, 1_310_000_000, 1_400_000_000)
    assert timings.ttft_s == pytest.approx(0.25)
    assert timings.itl_s == pytest.approx([0.02, 0.04, 0.09])
    assert timings.tpot_s == pytest.approx(0.05)
    assert timings.total_s == pytest.approx(0.4)
    assert timings.tpot_s == pytest.approx((timings.total_s - timings.ttft_s) / 3)


def test_one_token_has_no_tpot() -> None:
    timings = after(5, 1_000_000_005)
    assert timings.tpot_s is None
    assert timings.itl_s.size == 0
    assert timings.total_s == timings.ttft_s == pytest.approx(1)


@pytest.mark.parametrize("moments", [(), (5,)])
def test_before_the_first_token_there_are_no_times(moments: tuple[int, ...]) -> None:
    timings = after(*moments)
    assert (timings.ttft_s, timings.tpot_s, timings.total_s, timings.itl_s.size) == (None, None, None, 0)
