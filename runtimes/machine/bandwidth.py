"""Read bandwidth of the machine's memory, the ceiling of a decode step.

In: a number of threads. Out: bytes per second that this many threads read from memory, the median of several passes.

Each thread reads its own part of a buffer much larger than the last-level cache: loads, no store, without the
interpreter's lock. It is read bandwidth: a copy (as in STREAM) would also pay for stores, which decoding does not do.
What reads is the caller's (a compiled loop over vectors); where there is none, NumPy ORs the words together, which of
its reductions (add, dot, maximum over 8 to 64 bits) was never slower than another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import psutil

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.json_record import encode
from llmc.runtimes.machine.fingerprint import last_level_cache_bytes
from llmc.runtimes.machine.summary import Summary
from llmc.runtimes.machine.thread_team import timed_passes

Words = npt.NDArray[np.uint64]
NUMPY = "numpy"
SMALLEST_BUFFER = 512 << 20
CACHE_MULTIPLE = 4
LARGEST_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class Bandwidth:
    """A measured read bandwidth.

    Attributes:
        bytes_per_second: Median, least and most over the passes.
        threads: Threads that read at the same time.
        buffer_bytes: Bytes that one pass reads, all threads together.
        cache_bytes: Last-level cache that the machine reports; 0 when unknown.
        kernel: What read: a variant of the compiled kernels, or ``numpy``.
        pinned: Whether each thread had a core of its own.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("reaches_memory",)
    bytes_per_second: Summary
    threads: int
    buffer_bytes: int
    cache_bytes: int
    kernel: str = NUMPY
    pinned: bool = False

    @property
    def reaches_memory(self) -> bool:
        """Whether the buffer is at least twice the reported cache: then the figure is memory's, not the cache's."""
        return self.buffer_bytes >= 2 * self.cache_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return encode(self)


def default_buffer_bytes() -> int:
    """Four times the last-level cache, at least 512 MiB, at most a quarter of the memory available now."""
    wanted = max(SMALLEST_BUFFER, CACHE_MULTIPLE * last_level_cache_bytes())
    return min(wanted, int(psutil.virtual_memory().available * LARGEST_MEMORY_SHARE))


def or_words(words: Words) -> object:
    """Read every word once, with NumPy."""
    return np.bitwise_or.reduce(words)


def measure_read_bandwidth(
    threads: int,
    *,
    buffer_bytes: int | None = None,
    passes: int = 5,
    read: Callable[[Words], object] = or_words,
    kernel: str = NUMPY,
    pinned: bool = False,
) -> Bandwidth:
    """Read a buffer with ``threads`` threads ``passes`` times, after one pass that is not counted.

    Args:
        threads: At least 1.
        buffer_bytes: Bytes read in a pass; default :func:`default_buffer_bytes`.
        passes: At least 1; fewer are made where they take longer than a second.
        read: Reads a thread's part, all of it.
        kernel: What ``read`` is called in the result.
        pinned: Each thread on a core of its own.

    Raises:
        UsageError: a value below 1, or a buffer that gives a thread less than one word.
    """
    size = default_buffer_bytes() if buffer_bytes is None else buffer_bytes
    words = size // 8 // max(threads, 1)
    if threads < 1 or passes < 1 or words < 1:
        raise UsageError(f"bandwidth: threads {threads}, passes {passes} and buffer {size} bytes must be positive")
    # Written, not just allocated: untouched pages would all be the kernel's one zero page.
    parts = [np.full(words, thread + 1, dtype=np.uint64) for thread in range(threads)]
    seconds = timed_passes([partial(read, part) for part in parts], passes, pinned=pinned)
    total, cache = words * 8 * threads, last_level_cache_bytes()
    return Bandwidth(Summary.of([total / s for s in seconds]), threads, total, cache, kernel, pinned)
