import math

import pytest

from llmc.runtimes.bench.load.analysis import in_flight_at, mean_in_flight, tokens_within

from .samples import exchange, failed, point_of, requests_of


def test_latencies_count_from_the_scheduled_arrival() -> None:
    point = point_of(exchange(1.0, 1.5, 1.75, 2.25, late_s=0.25))
    assert point.ttft_ms is not None
    assert point.tpot_ms is not None
    assert point.itl_ms is not None
    assert point.e2e_ms is not None
    assert point.ttft_ms.p50 == 500.0
    assert point.tpot_ms.p50 == 375.0
    assert (point.itl_ms.minimum, point.itl_ms.maximum, point.itl_ms.count) == (250.0, 500.0, 2)
    assert point.e2e_ms.p50 == 1250.0


def test_several_tokens_in_a_chunk_are_counted_by_usage_for_tpot_and_are_one_gap_for_itl() -> None:
    point = point_of(exchange(0.0, 1.0, 2.0, 3.0, output_tokens=9))
    assert point.tpot_ms is not None
    assert point.itl_ms is not None
    assert (point.tpot_ms.p50, point.itl_ms.p50) == (250.0, 1000.0)
    assert point.output_tokens is not None
    assert point.output_tokens.median == 9


def test_an_answer_in_one_chunk_has_no_tpot() -> None:
    point = point_of(exchange(0.0, 1.0, output_tokens=9))
    assert (point.tpot_ms, point.itl_ms) == (None, None)
    assert point.ttft_ms is not None


def test_only_requests_of_the_window_have_latencies_and_all_in_it_have_rates() -> None:
    point = point_of(
        exchange(0.0, 2.5, 4.5, phase="warm-up"),
        exchange(3.0, 4.0, 5.0),
        exchange(5.0, 5.5, 7.0),
        exchange(6.5, 8.0, 9.0, phase="cool-down"),
        window=(2.0, 6.0),
    )
    assert (point.requests, point.ok) == (2, 2)
    assert point.ttft_ms is not None
    assert (point.ttft_ms.minimum, point.ttft_ms.maximum) == (500.0, 1000.0)
    assert point.requests_per_s == 2 / 4, "those that ended at 4.5 and 5"
    assert point.output_tokens_per_s == 5 / 4, "at 2.5, 4, 4.5, 5 and 5.5"
    assert point.total_tokens_per_s == (5 + 30) / 4, "prompts of the answers that began at 2.5, 4 and 5.5"


def test_failures_are_counted_by_their_kind_and_have_no_latency() -> None:
    point = point_of(
        exchange(0.0, 1.0, 2.0),
        failed(0.0, "HTTP 503: too busy", 0.1),
        failed(0.0, "HTTP 503: go away", 0.1),
        failed(1.0, "timed out after 5 s", 6.0),
    )
    assert (point.requests, point.ok, point.ok_share) == (4, 1, 0.25)
    assert point.errors == {"HTTP 503": 2, "timed out after 5 s": 1}
    assert point.ttft_ms is not None
    assert point.ttft_ms.count == 1


def test_goodput_counts_requests_that_met_every_limit() -> None:
    point = point_of(
        exchange(0.0, 0.4, 0.45, 0.5),
        exchange(0.0, 0.6, 0.65, 0.7),
        exchange(0.0, 0.4, 0.6, 0.8),
        failed(0.0, "HTTP 500: no", 0.1),
        limits="ttft=500ms,tpot=100ms",
    )
    assert (point.goodput_per_s, point.good_share) == (1 / 10, 1 / 4)
    without = point_of(exchange(0.0, 0.4))
    assert (without.goodput_per_s, without.good_share) == (None, None)


def test_requests_at_a_time() -> None:
    requests = requests_of(exchange(0.0, 4.0), exchange(1.0, 3.0), exchange(2.0))
    assert [in_flight_at(requests, moment) for moment in (0.5, 2.5, 3.5, 9.0)] == [1, 3, 2, 1]
    assert mean_in_flight(requests, 1.0, 3.0) == pytest.approx((2 + 2 + 1) / 2)


def test_a_trace_lasts_until_its_last_answer() -> None:
    point = point_of(exchange(0.0, 1.0, 2.0), exchange(0.0, 3.0, 4.0), window=(0.0, math.inf), ended_s=4.5)
    assert point.window_s == (0.0, 4.0)
    assert point.requests_per_s == 0.5


def test_an_interrupted_point_says_so_and_leaves_out_what_had_not_ended() -> None:
    point = point_of(
        exchange(0.0, 1.0, 2.0),
        exchange(1.0, 2.0, outcome="unfinished", ended_s=None),
        window=(0.0, math.inf),
        ended_s=2.5,
        is_interrupted=True,
    )
    assert not point.complete
    assert (point.requests, point.ok, point.errors, point.window_s) == (1, 1, {}, (0.0, 2.5))
    assert point.output_tokens_per_s == 3 / 2.5


def test_tokens_of_big_chunks_are_spread_over_them() -> None:
    requests = requests_of(exchange(0.0, 1.0, 3.0, output_tokens=8), failed(0.0, "HTTP 500", 1.0))
    assert tokens_within(requests, 0.0, 2.0) == 4.0


def test_who_counted_and_what_came_from_a_cache() -> None:
    point = point_of(exchange(0.0, 1.0, cached_tokens=5), exchange(0.0, 1.0, counted_by="chunks", asked=3))
    assert (point.counted_by, point.cached_share, point.ended_early) == ("chunks", 0.5, 1)
    assert point_of(exchange(0.0, 1.0)).cached_share is None


def test_reasoning_before_the_answer() -> None:
    point = point_of(exchange(1.0, 2.0, 3.0, 4.0, reasoning_chunks=2))
    assert point.answer_ms is not None
    assert point.ttft_ms is not None
    assert (point.ttft_ms.p50, point.answer_ms.p50) == (1000.0, 3000.0)
    assert point_of(exchange(1.0, 2.0, 3.0)).answer_ms is None
    assert point_of(exchange(1.0, 2.0, reasoning_chunks=1)).answer_ms is None


@pytest.mark.parametrize(
    ("late_s", "lags_s", "busy", "is_limit"),
    [
        (0.005, [0.001], 0.5, False),
        (0.05, [0.001], 0.5, True),
        (0.0, [0.05], 0.5, True),
        (0.0, [0.001], 0.95, True),
        (0.0, [], 0.95, False),
    ],
)
def test_a_generator_that_does_not_keep_up(late_s: float, lags_s: list[float], busy: float, is_limit: bool) -> None:
    point = point_of(exchange(0.0, 0.1, 0.2, late_s=late_s), lags_s=lags_s, busy_share=busy)
    assert point.generator.is_limit == is_limit
    assert point.generator.late_ms.p99 == pytest.approx(1e3 * late_s)


def test_a_slow_engine_forgives_a_late_generator() -> None:
    assert not point_of(exchange(0.0, 1.0, 2.0, late_s=0.05)).generator.is_limit
