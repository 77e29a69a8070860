"""How many threads to compute with when nobody says.

In: the process's affinity. Out: the cores that it may run on, hyper-threads counted once.
"""

from __future__ import annotations

import os


def default_threads() -> int:
    """Physical cores that this process may use; at least 1."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))
