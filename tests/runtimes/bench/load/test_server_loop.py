import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmc.runtimes.bench.load.course import ClosedStarts, Course, OpenStarts, Starts, Window
from llmc.runtimes.bench.load.server_loop import ServerLoop
from llmc.runtimes.bench.load.target import Exchange, Traffic
from llmc.runtimes.bench.load.workload import Work

from .virtual_time import run


def make_course(starts: Starts, window: Window, **options: Any) -> Course[None]:
    return Course(starts, window, lambda number: Work("p", 4), lambda work: None, **options)


def answering(*gaps: float) -> Callable[[Exchange, Callable[[], float]], Any]:
    """Answers with a chunk after each of these seconds."""

    async def send(exchange: Exchange, clock: Callable[[], float]) -> None:
        for gap in gaps:
            await asyncio.sleep(gap)
            exchange.chunk_s.append(clock())
        exchange.outcome, exchange.ended_s = "ok", clock()

    return send


def serve(course: Course[None], send: Any, timeout_s: float = 100.0) -> Traffic:
    async def main(clock: Callable[[], float]) -> Traffic:
        return await ServerLoop(send, timeout_s, clock, lambda: 0.0).run(course, lambda now: None)

    return run(main)


def test_requests_of_an_open_loop_wait_for_nobody() -> None:
    course = make_course(OpenStarts(iter([1.0, 1.5, 2.0])), Window(0.0, 5.0), most=3)
    traffic = serve(course, answering(3.0, 0.25))
    assert [it.job.scheduled_s for it in traffic.exchanges] == [1.0, 1.5, 2.0]
    assert [it.sent_s for it in traffic.exchanges] == pytest.approx([1.0, 1.5, 2.0], abs=2e-3)
    assert [it.chunk_s[0] for it in traffic.exchanges] == pytest.approx([4.0, 4.5, 5.0], abs=5e-3)
    assert [it.ended_s for it in traffic.exchanges] == pytest.approx([4.25, 4.75, 5.25], abs=5e-3)
    assert traffic.ended_s == pytest.approx(5.25, abs=5e-3)


def test_a_user_asks_again_when_answered() -> None:
    traffic = serve(make_course(ClosedStarts(1, 0.0), Window(0.0, 3.5)), answering(0.5, 0.5))
    assert [it.job.scheduled_s for it in traffic.exchanges] == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-2)
    assert all(it.late_s < 2e-3 for it in traffic.exchanges)


def test_what_does_not_count_is_dropped_at_the_end() -> None:
    async def send(exchange: Exchange, clock: Callable[[], float]) -> None:
        await answering(2.0 if exchange.job.number == 0 else 50.0)(exchange, clock)

    traffic = serve(make_course(OpenStarts(iter([0.0, 1.5])), Window(0.0, 1.0)), send)
    assert [(it.job.phase, it.outcome) for it in traffic.exchanges] == [
        ("measured", "ok"),
        ("cool-down", "unfinished"),
    ]
    assert traffic.ended_s == pytest.approx(2.0, abs=1e-2)


def test_a_request_is_given_up_after_its_time_counted_from_its_arrival() -> None:
    traffic = serve(make_course(OpenStarts(iter([1.0])), Window(0.0, 5.0), most=1), answering(50.0), timeout_s=3.0)
    (only,) = traffic.exchanges
    assert (only.outcome, only.error) == ("failed", "timed out after 3 s")
    assert only.ended_s == pytest.approx(4.0, abs=5e-3)


def test_a_generator_that_is_held_up_says_how_late_it_was_and_keeps_the_schedule() -> None:
    async def main(clock: Callable[[], float]) -> Traffic:
        loop: Any = asyncio.get_running_loop()

        async def hog() -> None:
            await asyncio.sleep(0.9)
            loop.sleepless.now += 0.4  # nobody else ran meanwhile

        hogging = asyncio.create_task(hog())
        course = make_course(OpenStarts(iter([1.0])), Window(0.0, 2.0), most=1)
        traffic = await ServerLoop(answering(0.5), 100.0, clock, lambda: 0.0).run(course, lambda now: None)
        await hogging
        return traffic

    traffic = run(main)
    (only,) = traffic.exchanges
    assert only.job.scheduled_s == 1.0
    assert only.late_s == pytest.approx(0.3, abs=0.02)
    assert max(traffic.lags_s) == pytest.approx(0.4, abs=0.02)
    assert only.chunk_s[0] - only.job.scheduled_s == pytest.approx(0.8, abs=0.02), "the delay is in the latency"


def test_an_interrupted_run_keeps_what_came() -> None:
    async def main(clock: Callable[[], float]) -> Traffic:
        course = make_course(ClosedStarts(2, 0.0), Window(0.0, 100.0))
        going = asyncio.create_task(
            ServerLoop(answering(1.0, 1.0), 100.0, clock, lambda: 0.0).run(course, lambda now: None)
        )
        await asyncio.sleep(3.5)
        going.cancel()
        return await going

    traffic = run(main)
    assert traffic.is_interrupted
    assert [it.outcome for it in traffic.exchanges] == ["ok", "ok", "unfinished", "unfinished"]
    assert [len(it.chunk_s) for it in traffic.exchanges] == [2, 2, 1, 1]


def test_how_busy_it_is() -> None:
    async def main(clock: Callable[[], float]) -> Traffic:
        course = make_course(OpenStarts(iter([0.0])), Window(0.0, 5.0), most=1)
        loop = ServerLoop(answering(2.0), 100.0, clock, lambda: clock() / 4)
        return await loop.run(course, lambda now: None)

    assert run(main).busy_share == pytest.approx(0.25)
