"""A load on a server: requests are sent when they are due, each a task of one event loop.

In: a course, and what sends one request. Out: traffic. The generator watches itself: how late it sends, how late its
event loop wakes up, how much of a core it takes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from llmc.runtimes.bench.load.course import Course
from llmc.runtimes.bench.load.target import BREATH_S, Exchange, Traffic, Watch

Send = Callable[[Exchange, Callable[[], float]], Awaitable[None]]
"""Sends an exchange's request, by a clock, and writes down what came of it; raises nothing but a cancellation."""
PULSE_S = 0.01
"""Between two looks at how late the event loop wakes up."""


@dataclass
class ServerLoop:
    """The loop of one point.

    Attributes:
        send: See :data:`Send`.
        timeout_s: From a request's scheduled arrival until it is given up.
        clock: Seconds, of the same speed as the event loop's.
        processor_s: Seconds of computing that this process has used.
    """

    send: Send
    timeout_s: float
    clock: Callable[[], float] = time.perf_counter
    processor_s: Callable[[], float] = time.process_time
    _begin: float = 0.0
    _traffic: Traffic = field(default_factory=Traffic)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, course: Course[Any], watch: Watch) -> Traffic:
        """Serve a course to its end; where this task is cancelled (Ctrl-C), to there."""
        self._begin, processor = self.clock(), self.processor_s()
        pulse = asyncio.create_task(self._feel_pulse())
        try:
            while not course.is_over(now := self._now()):
                watch(now)
                for job in course.due(now):
                    sent = self._now()
                    exchange = Exchange(job, sent, sent - job.scheduled_s, "usage")
                    self._traffic.exchanges.append(exchange)
                    task = asyncio.create_task(self._serve(course, exchange))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                if not course.fill():
                    await self._rest(course.next_due() - self._now())
                else:
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._traffic.is_interrupted = True
        self._traffic.ended_s = self._now()
        self._traffic.busy_share = (self.processor_s() - processor) / max(self._traffic.ended_s, 1e-9)
        for task in (pulse, *self._tasks):
            task.cancel()
        await asyncio.gather(pulse, *self._tasks, return_exceptions=True)
        return self._traffic

    def _now(self) -> float:
        return self.clock() - self._begin

    async def _serve(self, course: Course[Any], exchange: Exchange) -> None:
        """One request to its end, whatever that is."""
        left = exchange.job.scheduled_s + self.timeout_s - self._now()
        try:
            async with asyncio.timeout(max(0.0, left)):
                await self.send(exchange, self._now)
        except TimeoutError:
            exchange.fail(f"timed out after {self.timeout_s:g} s", self._now())
        course.ended(exchange.job, self._now(), failed=exchange.outcome == "failed")
        self._news.set()

    async def _rest(self, seconds: float) -> None:
        """Sleep until the next request is due, something ended, or a breath."""
        self._news.clear()
        wait = min(seconds, BREATH_S) if not math.isnan(seconds) else BREATH_S
        try:
            async with asyncio.timeout(max(0.0, wait)):
                await self._news.wait()
        except TimeoutError:
            return

    async def _feel_pulse(self) -> None:
        while True:
            due = self._now() + PULSE_S
            await asyncio.sleep(PULSE_S)
            self._traffic.lags_s.append(max(0.0, self._now() - due))
