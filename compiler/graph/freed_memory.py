"""Memory that was freed and is needed again a moment later.

glibc gives large blocks back to the system as soon as they are freed, and fresh pages can cost more than the
arithmetic on them: rounding weights took three times as long on a virtual machine. Once one was freed, glibc keeps
blocks up to its size (``M_MMAP_THRESHOLD`` in mallopt(3) is dynamic), so one that is made for nothing else sets this
for all threads.
"""

from __future__ import annotations

import numpy as np

LARGEST_BLOCK = 8 << 20
"""Bytes: more than the arrays of a few rows, and little enough, since each thread may keep as much again twice."""


def keep_freed_memory() -> None:
    """From now on blocks below :data:`LARGEST_BLOCK` are used again; where the C library is another, nothing."""
    np.empty(LARGEST_BLOCK, np.uint8)
