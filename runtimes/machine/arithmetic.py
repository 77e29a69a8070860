"""Arithmetic that threads of this machine do in a second, the ceiling of a prompt.

In: a piece of work of so many rounds that tells how many operations it was. Out: :class:`Rate`.

A multiplication and an addition are two operations. The work is the caller's (:mod:`llmc.runtimes.kernels.ceilings`);
where no kernel can be compiled, :func:`measure_numpy` multiplies float32 matrices with NumPy's library and threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.machine.bandwidth import NUMPY
from llmc.runtimes.machine.summary import Summary
from llmc.runtimes.machine.thread_team import timed_passes

PASS_S = 0.03
"""About so long is a pass."""
MATRIX = 1024
"""Rows and columns of the matrices that NumPy multiplies."""


@dataclass(frozen=True)
class Rate:
    """A measured rate of arithmetic.

    Attributes:
        operations_per_second: Of all threads together; median, least and most over the passes.
        threads: How many; 0: as many as NumPy's library takes.
        kernel: What computed: a variant of the compiled kernels, ``numpy``, or ``torch``.
        pinned: Whether each thread had a core of its own.
    """

    operations_per_second: Summary
    threads: int
    kernel: str
    pinned: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rate:
        """What :meth:`to_json` made."""
        return cls(**{**value, "operations_per_second": Summary(**value["operations_per_second"])})


def measure_rate(
    work: Callable[[int], float], threads: int, *, kernel: str, pinned: bool = False, passes: int = 5
) -> Rate:
    """Let ``threads`` threads do ``work`` at the same time, up to ``passes`` times, after once that is not counted.

    Args:
        work: Does so many rounds without the interpreter's lock; returns its operations.
        threads, passes: At least 1.
        kernel: What ``work`` is called in the result.
        pinned: Each thread on a core of its own.

    Raises:
        UsageError: a value below 1.
    """
    if threads < 1 or passes < 1:
        raise UsageError(f"arithmetic: threads {threads} and passes {passes} must be positive")
    rounds, each = _rounds_of_a_pass(work)
    team = [partial(work, rounds)] * threads
    seconds = timed_passes(team, passes, pinned=pinned)
    return Rate(Summary.of([threads * each / s for s in seconds]), threads, kernel, pinned)


def _rounds_of_a_pass(work: Callable[[int], float]) -> tuple[int, float]:
    """Rounds that take one thread about :data:`PASS_S`, and their operations; finding them warms the core up."""
    rounds = 1
    while True:
        begin = time.perf_counter()
        operations = work(rounds)
        if time.perf_counter() - begin >= PASS_S / 2:
            return rounds, operations
        rounds *= 2


def measure_numpy(*, passes: int = 5) -> Rate:
    """Products of float32 matrices with NumPy, up to ``passes`` (at least 1), after one that is not counted."""
    left, right, product = (np.ones((MATRIX, MATRIX), np.float32) for _ in range(3))
    seconds = timed_passes([partial(np.matmul, left, right, product)], passes)
    return Rate(Summary.of([2 * MATRIX**3 / s for s in seconds]), 0, NUMPY)
