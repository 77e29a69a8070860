"""Blocks that are freed and made again take no fresh pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from llmc.compiler.graph.freed_memory import keep_freed_memory

keep_freed_memory()
np.ones(1 << 19, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 19, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_block_is_made_of_the_pages_of_the_one_before() -> None:
    """In processes of their own: what was freed before sets it for good."""
    command = [sys.executable, "-c", SCRIPT]
    # Without it several hundred.
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 20
