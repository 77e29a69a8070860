"""Who asks when: the course of one load, without a clock of its own.

In: when requests begin, what they ask, how long they count; the time, again and again. Out: requests that are due::

    0 ──── warm-up ────▶ window opens ──── requests count ────▶ window closes ── the load goes on ──▶ over

The course never waits for anybody: a request of an open loop is due at its moment, whatever has become of those
before it, and its clock starts there (waiting for an answer before the next one is sent would leave out the worst
latencies: coordinated omission). After the window the load goes on until the last request that counts is answered, so
that those do not find an emptier engine than the others; then what still runs is dropped.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from llmc.runtimes.bench.load.records import Phase
from llmc.runtimes.bench.load.workload import Work

Payload = TypeVar("Payload")
PAUSE_S = 0.5
"""That a user waits after a failure: one who asks again at once would only count failures."""


@dataclass(eq=False)
class Job(Generic[Payload]):
    """A request that is due.

    Attributes:
        number: From 0.
        payload: What is sent.
        scheduled_s: When it was to arrive, seconds since the point's begin.
    """

    number: int
    work: Work
    payload: Payload
    scheduled_s: float
    phase: Phase


class Starts(Protocol):
    """Moments at which requests are due."""

    def next(self) -> float | None:
        """The next one's; None: nobody asks before someone is answered, or ever again."""
        ...

    def take(self) -> None:
        """It has begun."""
        ...

    def ended(self, moment: float, *, failed: bool) -> None:
        """A request ended."""
        ...


class OpenStarts:
    """Moments that were fixed before."""

    def __init__(self, moments: Iterator[float]) -> None:
        self._moments = moments
        self._next = next(moments, None)

    def next(self) -> float | None:
        """The next one's; None: there is none."""
        return self._next

    def take(self) -> None:
        """It has begun."""
        self._next = next(self._moments, None)

    def ended(self, moment: float, *, failed: bool) -> None:
        """Nobody waits for it."""


class ClosedStarts:
    """Users, each of whom asks again when answered.

    They begin one after the other in the first half of the warm-up: users who begin together, and get answers of one
    length, would go on asking in the same moments.
    """

    def __init__(self, users: int, warm_up_s: float) -> None:
        self._ready = [user * warm_up_s / (2 * users) for user in range(users)]

    def next(self) -> float | None:
        """The next user's; None: all wait for an answer."""
        return self._ready[0] if self._ready else None

    def take(self) -> None:
        """That user waits now."""
        heapq.heappop(self._ready)

    def ended(self, moment: float, *, failed: bool) -> None:
        """A user is ready; after a failure, after a while."""
        heapq.heappush(self._ready, moment + (PAUSE_S if failed else 0.0))


@dataclass
class Window:
    """Which requests count.

    Attributes:
        warm_up_s: Before the first of them.
        duration_s: Between its ends at most; may be without an end.
        requests: How many at most; None: as many as come.
        counted: So far.
        closed_s: Its end, once it is known.
    """

    warm_up_s: float
    duration_s: float
    requests: int | None = None
    counted: int = 0
    closed_s: float | None = None

    def phase(self, moment: float) -> Phase:
        """Of a request that is due; those must come in the order of their moments."""
        if moment < self.warm_up_s:
            return "warm-up"
        self.pass_by(moment)
        if self.closed_s is None and self.requests is not None and self.counted >= self.requests:
            self.closed_s = moment
        if self.closed_s is not None:
            return "cool-down"
        self.counted += 1
        return "measured"

    def pass_by(self, moment: float) -> None:
        """Close the window where its time is over."""
        end = self.warm_up_s + self.duration_s
        if self.closed_s is None and moment >= end:
            self.closed_s = end


class Course(Generic[Payload]):
    """One load from its begin to its end."""

    def __init__(
        self,
        starts: Starts,
        window: Window,
        work: Callable[[int], Work],
        prepare: Callable[[Work], Payload],
        *,
        ahead: int = 16,
        most: int | None = None,
    ) -> None:
        """Prepare the first ``ahead`` requests, before any clock runs.

        Args:
            starts: When they are due.
            window: Which of them count.
            work: The request of each number.
            prepare: Makes what is sent of it, which may take milliseconds.
            ahead: Requests that are kept ready.
            most: Requests there are; None: without an end.
        """
        self.window = window
        self._starts, self._work, self._prepare = starts, work, prepare
        self._numbers = itertools.count() if most is None else iter(range(most))
        self._ready: deque[tuple[int, Work, Payload]] = deque()
        self._ahead, self._open, self.running = ahead, 0, 0
        while self.fill():
            pass

    def fill(self) -> bool:
        """Prepare one request more where fewer are ready than should be; whether there was one to prepare."""
        if len(self._ready) >= self._ahead:
            return False
        number = next(self._numbers, None)
        if number is not None:
            work = self._work(number)
            self._ready.append((number, work, self._prepare(work)))
        return number is not None

    def due(self, now: float) -> list[Job[Payload]]:
        """The requests whose moment has come; they are running from now on."""
        jobs = []
        while (moment := self._starts.next()) is not None and moment <= now and (self._ready or self.fill()):
            self._starts.take()
            number, work, payload = self._ready.popleft()
            job = Job(number, work, payload, moment, self.window.phase(moment))
            self._open += job.phase == "measured"
            self.running += 1
            jobs.append(job)
        return jobs

    def next_due(self) -> float:
        """When the next one is due, as far as is known now; without an end where nobody asks."""
        moment = self._starts.next()
        return math.inf if moment is None or not self._has_more() else moment

    def ended(self, job: Job[Payload], now: float, *, failed: bool = False) -> None:
        """A request was answered, or failed."""
        self.running -= 1
        self._open -= job.phase == "measured"
        self._starts.ended(now, failed=failed)

    def is_over(self, now: float) -> bool:
        """Whether all requests that count have ended, and none will count any more."""
        self.window.pass_by(now)
        closed = self.window.closed_s is not None or not (self.running or self._has_more())
        return closed and not self._open

    def _has_more(self) -> bool:
        """Whether some requests have not begun; those of a trace do once."""
        return bool(self._ready) or self.fill()
