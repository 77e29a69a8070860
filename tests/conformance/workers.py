"""Tasks in processes of their own: one that crashes or hangs costs its own task only.

In: a function, and the strings that it is called with. Out: each string with what the function returned, or with the
:class:`Failure` that it met, in the order in which they end.

``multiprocessing.Pool`` waits for ever for the result of a process that was killed, and ``concurrent.futures`` gives
up all tasks with the first; a model may well bring down its interpreter, or fill the memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

R = TypeVar("R")
_SPAWN = multiprocessing.get_context("spawn")
"""A forked child would inherit the threads' locks of torch and ONNX Runtime, but not the threads."""
GRACE = 10.0
"""Seconds that an idle process has to end."""


@dataclass(frozen=True)
class Failure:
    """Why a task has no result, in one clause."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What the tasks may take.

    Attributes:
        jobs: Processes at the same time.
        seconds: Longest time of one task.
        tasks: Tasks after which a process is replaced, so that what libraries keep does not add up.
    """

    jobs: int = 1
    seconds: float = 300.0
    tasks: int = 16


def run_tasks(
    function: Callable[[str], R], tasks: Sequence[str], limits: Limits
) -> Iterator[tuple[str, R | Failure]]:
    """Call ``function``, which child processes import by its name, once per task."""
    waiting = deque(tasks)
    workers = [_Worker(function, limits) for _ in range(min(limits.jobs, len(tasks)))]
    try:
        while True:
            for worker in workers:
                if worker.task is None and waiting:
                    worker.give(waiting.popleft())
            busy = [worker for worker in workers if worker.task is not None]
            if not busy:
                return
            first = min(worker.deadline for worker in busy)
            ready = wait([worker.pipe for worker in busy], max(0.0, first - time.monotonic()))
            for worker in busy:
                if worker.pipe in ready or time.monotonic() >= worker.deadline:
                    yield worker.take(finished=worker.pipe in ready)
    finally:
        for worker in workers:
            worker.end()


@dataclass
class _Worker(Generic[R]):
    """One process at a time, and its task."""

    function: Callable[[str], R]
    limits: Limits
    task: str | None = None
    deadline: float = 0.0
    _process: Any = None
    _pipe: Connection | None = field(default=None, repr=False)
    _done: int = 0

    @property
    def pipe(self) -> Connection:
        assert self._pipe is not None
        return self._pipe

    def give(self, task: str) -> None:
        """Start a task, in a new process where there is none or where it has done its share."""
        if self._process is None or not self._process.is_alive() or self._done >= self.limits.tasks:
            self.end()
            self._pipe, child = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(self.function, child), daemon=True)
            self._process.start()
            # Without this end the pipe of a process that died would stay open.
            child.close()
            self._done = 0
        self.task, self.deadline = task, time.monotonic() + self.limits.seconds
        with contextlib.suppress(BrokenPipeError):  # it died this moment, which the pipe's end will tell
            self.pipe.send(task)

    def take(self, *, finished: bool) -> tuple[str, R | Failure]:
        """The task and its result, or why there is none."""
        task, self.task = self.task, None
        assert task is not None
        self._done += 1
        if not finished:
            self._process.kill()
            self.end()
            return task, Failure(f"not finished after {self.limits.seconds:g} s")
        try:
            return task, self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            self.end()
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return task, Failure(f"its process {how}")

    def end(self) -> None:
        """Without a task the process ends by itself when its pipe does; else it is killed."""
        if self._process is not None:
            self.pipe.close()
            if self.task is None:
                self._process.join(GRACE)
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None


def _serve(function: Callable[[str], R], pipe: Connection) -> None:
    """A child's life: one task after the other, until the parent closes the pipe."""
    # Ctrl-C goes to the whole group; the parent ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(function(task))
