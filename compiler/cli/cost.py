"""What a command took.

In: a block of code. Out: :class:`Cost`, filled when it ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Cost:
    """What was used.

    Attributes:
        seconds: From beginning to end.
        peak_rss_bytes: Most resident memory of the process since it started; None where the system does not tell.
    """

    seconds: float = 0.0
    peak_rss_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measure what runs inside."""
    cost, begin = Cost(), time.perf_counter()
    yield cost
    from llmc.runtimes.bench.tools.process_memory import read_memory_fields

    cost.seconds = time.perf_counter() - begin
    cost.peak_rss_bytes = read_memory_fields(os.getpid()).get("VmHWM")
