"""Read bandwidth of the machine's memory, the ceiling of a decode step.

In: a number of threads. Out: bytes per second that this many threads read from memory, the median of several passes.

Each thread ORs together its own part of a buffer much larger than the last-level cache: one load per word, no store,
and NumPy releases the interpreter's lock for the whole part. It is read bandwidth: a copy (as in STREAM) would also
pay for stores, which decoding does not do. Of NumPy's reductions (add, dot, maximum over 8 to 64 bits) this one was
never slower than another; a kernel with software prefetch may read somewhat faster.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import psutil

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.json_record import encode
from llmc.runtimes.machine.fingerprint import last_level_cache_bytes
from llmc.runtimes.machine.summary import Summary

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
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("reaches_memory",)
    bytes_per_second: Summary
    threads: int
    buffer_bytes: int
    cache_bytes: int

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


def measure_read_bandwidth(threads: int, *, buffer_bytes: int | None = None, passes: int = 5) -> Bandwidth:
    """Read a buffer with ``threads`` threads ``passes`` times, after one pass that is not counted.

    Args:
        threads: At least 1.
        buffer_bytes: Bytes read in a pass; default :func:`default_buffer_bytes`.
        passes: At least 1.

    Raises:
        UsageError: a value below 1, or a buffer that gives a thread less than one word.
    """
    size = default_buffer_bytes() if buffer_bytes is None else buffer_bytes
    words = size // 8 // max(threads, 1)
    if threads < 1 or passes < 1 or words < 1:
        raise UsageError(f"bandwidth: threads {threads}, passes {passes} and buffer {size} bytes must be positive")
    # Written, not just allocated: untouched pages would all be the kernel's one zero page.
    parts = [np.full(words, thread + 1, dtype=np.uint64) for thread in range(threads)]
    seconds = [_timed_pass(parts) for _ in range(passes + 1)][1:]
    total = words * 8 * threads
    return Bandwidth(Summary.of([total / s for s in seconds]), threads, total, last_level_cache_bytes())


def _timed_pass(parts: list[npt.NDArray[np.uint64]]) -> float:
    """Seconds from the moment all threads are ready until the last has read its part."""
    ready = threading.Barrier(len(parts) + 1)

    def read(part: npt.NDArray[np.uint64]) -> None:
        ready.wait()
        np.bitwise_or.reduce(part)

    readers = [threading.Thread(target=read, args=(part,)) for part in parts]
    for reader in readers:
        reader.start()
    ready.wait()
    begin = time.perf_counter()
    for reader in readers:
        reader.join()
    return time.perf_counter() - begin
