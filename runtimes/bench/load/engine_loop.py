"""A load on an engine in this process: requests join and leave between its steps.

In: a course, a :class:`~llmc.runtimes.generation.batch.Batch`. Out: traffic. One thread does both: what has become
due while a step was computed joins before the next one, as it would in a server around the same loop. So a request
may be handed over late by a step, which is the engine's doing and in its latency; the generator is late by what
passes between a step's end and the hand-over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmc.runtimes.bench.load.course import Course, Job
from llmc.runtimes.bench.load.target import BREATH_S, Exchange, Traffic, Watch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.sampling_params import SamplingParams


class Steps(Protocol):
    """What is needed of a batch."""

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        ...

    def add(self, request: Request) -> None:
        """Let a request wait for a row."""
        ...

    def cancel(self, request: Request) -> None:
        """End one."""
        ...

    def step(self) -> list[Request]:
        """Compute; returns those with a new token."""
        ...


@dataclass
class EngineLoop:
    """The loop of one point.

    Attributes:
        steps: A fresh batch.
        sampling, eos_ids: Of every request.
        timeout_s: From a request's scheduled arrival until it is given up.
        clock, sleep: Seconds.
    """

    steps: Steps
    sampling: SamplingParams
    eos_ids: frozenset[int]
    timeout_s: float
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    _begin: float = 0.0
    _free_since: float = 0.0
    _elsewhere_s: float = 0.0
    _running: dict[int, tuple[Request, Exchange]] = field(default_factory=dict)

    def run(self, course: Course[Sequence[int]], watch: Watch) -> Traffic:
        """Serve a course to its end.

        Raises:
            EngineError: the engine failed.
        """
        traffic, self._begin = Traffic(), self.clock()
        try:
            while not course.is_over(now := self._now()):
                watch(now)
                for job in course.due(now):
                    traffic.exchanges.append(self._begin_one(job))
                if self.steps.busy:
                    self._step(course)
                    course.fill()
                else:
                    self._wait(course.next_due() - self._now())
        except KeyboardInterrupt:
            traffic.is_interrupted = True
        traffic.ended_s = self._now()
        traffic.busy_share = max(0.0, 1 - self._elsewhere_s / traffic.ended_s) if traffic.ended_s else 0.0
        return traffic

    def _now(self) -> float:
        return self.clock() - self._begin

    def _begin_one(self, job: Job[Sequence[int]]) -> Exchange:
        request = Request(job.payload, job.work.output, self.sampling, self.eos_ids, id=job.number)
        self.steps.add(request)
        sent = self._now()
        exchange = Exchange(job, sent, sent - max(job.scheduled_s, self._free_since), "engine")
        exchange.prompt_tokens = len(job.payload)
        self._running[job.number] = request, exchange
        return exchange

    def _step(self, course: Course[Sequence[int]]) -> None:
        """One step of the engine, and what came of it."""
        begin = self._now()
        fresh = self.steps.step()
        self._free_since = now = self._now()
        self._elsewhere_s += now - begin
        for request in fresh:
            _, exchange = self._running[request.id]
            exchange.chunk_s.append(now)
            exchange.output_tokens += 1
            if request.finished is not None:
                exchange.outcome, exchange.finish, exchange.ended_s = "ok", request.finished, now
                self._end(course, exchange)
        for request, exchange in [*self._running.values()]:
            if now - exchange.job.scheduled_s > self.timeout_s:
                self.steps.cancel(request)
                exchange.fail(f"timed out after {self.timeout_s:g} s", now)
                self._end(course, exchange)

    def _end(self, course: Course[Sequence[int]], exchange: Exchange) -> None:
        del self._running[exchange.job.number]
        course.ended(exchange.job, self._now(), failed=exchange.outcome == "failed")

    def _wait(self, seconds: float) -> None:
        """Sleep until the next request is due, or a breath."""
        begin = self._now()
        self.sleep(max(0.0, min(seconds, BREATH_S)))
        self._elsewhere_s += self._now() - begin
