from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from llmc.runtimes.bench.load.course import ClosedStarts, Course, OpenStarts, Starts, Window
from llmc.runtimes.bench.load.engine_loop import EngineLoop
from llmc.runtimes.bench.load.target import Traffic
from llmc.runtimes.bench.load.workload import Work
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.sampling_params import SamplingParams


class Engine:
    """Steps of one length, ``rows`` requests at a time, and the clock that they move."""

    def __init__(self, step_s: float = 0.25, rows: int = 2) -> None:
        self.now, self._step_s, self._rows = 0.0, step_s, rows
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        self.cancelled: list[int] = []
        self.slept: list[float] = []
        self.before: Callable[[], None] = lambda: None

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._active)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request.id)
        request.finished = "stop"
        self._active = [other for other in self._active if other is not request]
        self._waiting = deque(other for other in self._waiting if other is not request)

    def step(self) -> list[Request]:
        self.before()
        while self._waiting and len(self._active) < self._rows:
            self._active.append(self._waiting.popleft())
        self.now += self._step_s
        for request in self._active:
            request.finished = request.take(7, 0)
        fresh, self._active = self._active, [it for it in self._active if it.finished is None]
        return fresh

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def run(
        self, starts: Starts, window: Window, *, tokens: int = 3, timeout_s: float = 100.0, **course: Any
    ) -> Traffic:
        plan = Course(starts, window, lambda number: Work("p", tokens), lambda work: [1, 2], **course)
        loop = EngineLoop(self, SamplingParams(), frozenset(), timeout_s, lambda: self.now, self.sleep)
        return loop.run(plan, lambda now: None)


def test_a_request_joins_between_steps_and_its_clock_runs_since_its_arrival() -> None:
    traffic = Engine().run(OpenStarts(iter([0.0, 0.375])), Window(0.0, 9.0), most=2)
    first, second = traffic.exchanges
    assert first.chunk_s == [0.25, 0.5, 0.75]
    # It came in the middle of the second step, and was handed over behind it: 0.125 s that are the engine's.
    assert (second.job.scheduled_s, second.sent_s, second.late_s) == (0.375, 0.5, 0.0)
    assert second.chunk_s == [0.75, 1.0, 1.25]
    assert (second.outcome, second.finish, second.ended_s, second.output_tokens) == ("ok", "length", 1.25, 3)
    assert (first.prompt_tokens, first.counted_by) == (2, "engine")


def test_requests_beyond_the_rows_wait_and_the_wait_is_theirs() -> None:
    traffic = Engine(rows=1).run(OpenStarts(iter([0.0, 0.0])), Window(0.0, 9.0), most=2)
    assert traffic.exchanges[1].chunk_s == [1.0, 1.25, 1.5]


def test_an_idle_loop_sleeps_until_the_next_arrival() -> None:
    engine = Engine()
    traffic = engine.run(OpenStarts(iter([0.05])), Window(0.0, 9.0), most=1)
    assert engine.slept == [pytest.approx(0.05)]
    assert traffic.busy_share == pytest.approx(0.0)


def test_a_loop_that_wakes_up_late_says_so() -> None:
    engine = Engine()
    engine.sleep = lambda seconds: setattr(engine, "now", engine.now + 0.5)  # type: ignore[method-assign]
    (only,) = engine.run(OpenStarts(iter([0.1])), Window(0.0, 9.0), most=1).exchanges
    assert only.late_s == pytest.approx(0.4)
    assert only.chunk_s[0] - only.job.scheduled_s == pytest.approx(0.65)


def test_users_ask_again_when_answered() -> None:
    traffic = Engine().run(ClosedStarts(1, 0.0), Window(0.0, 2.0))
    assert [it.job.scheduled_s for it in traffic.exchanges] == [0.0, 0.75, 1.5]


def test_a_request_is_given_up_after_its_time() -> None:
    engine = Engine()
    traffic = engine.run(OpenStarts(iter([0.0])), Window(0.0, 9.0), tokens=50, timeout_s=1.1, most=1)
    (only,) = traffic.exchanges
    assert (only.outcome, only.error, only.ended_s) == ("failed", "timed out after 1.1 s", 1.25)
    assert engine.cancelled == [0]


def test_an_interrupted_run_keeps_what_came() -> None:
    engine = Engine()

    def interrupt() -> None:
        if engine.now > 0.9:
            raise KeyboardInterrupt

    engine.before = interrupt
    traffic = engine.run(ClosedStarts(1, 0.0), Window(0.0, 50.0))
    assert traffic.is_interrupted
    assert [(it.outcome, len(it.chunk_s)) for it in traffic.exchanges] == [("ok", 3), ("unfinished", 1)]


def test_time_outside_of_the_engine_is_the_generators() -> None:
    engine = Engine()
    plan = Course(OpenStarts(iter([0.0])), Window(0.0, 9.0), lambda number: Work("p", 3), lambda work: [1], most=1)

    def watch(now: float) -> None:
        engine.now += 0.25

    loop = EngineLoop(engine, SamplingParams(), frozenset(), 9.0, lambda: engine.now, engine.sleep)
    assert loop.run(plan, watch).busy_share == pytest.approx(0.5)
