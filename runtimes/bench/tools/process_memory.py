"""Peak memory of a command and everything it starts.

In: a command line. Out: :class:`CommandUsage`: wall time, exit status, peak resident bytes, what it printed.

The peak is polled from ``/proc`` (every 20 ms): the larger of the sum of VmRSS over the whole process tree at one
moment and the largest VmHWM of any one process, which the kernel keeps exactly. ``getrusage`` would not do: a child's
``ru_maxrss`` starts from its parent's, and that of all children never falls from one command to the next.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers.protocol import memory_fields

POLL_S = 0.02
OUTPUT_TAIL = 4000


@dataclass(frozen=True)
class CommandUsage:
    """What a command took.

    Attributes:
        returncode: Its exit status.
        wall_s: Seconds from start to end.
        peak_rss_bytes: Peak resident bytes of the process tree, file-backed pages included.
        peak_anonymous_bytes: Peak of the part that no file backs (RssAnon), which cannot be dropped under pressure.
        output: End of what it wrote to stdout and stderr.
    """

    returncode: int
    wall_s: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    output: str


def run_measured(command: Sequence[str], *, timeout_s: float | None = None) -> CommandUsage:
    """Run a command to its end and measure it.

    Raises:
        EngineError: it cannot be started, or ran longer than ``timeout_s`` (it is killed then).
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except OSError as error:
            raise EngineError(f"cannot start {command[0]}: {error}") from error
        peak = anonymous = 0
        try:
            while process.poll() is None:
                resident, highest, private = _tree_memory(process.pid)
                peak, anonymous = max(peak, resident, highest), max(anonymous, private)
                if timeout_s is not None and time.perf_counter() - begin > timeout_s:
                    raise EngineError(f"{command[0]} ran longer than {timeout_s:.0f} s and was stopped")
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        wall = time.perf_counter() - begin
        size = output.seek(0, 2)
        output.seek(max(0, size - OUTPUT_TAIL))
        text = output.read().decode(errors="replace")
    return CommandUsage(process.returncode, wall, peak, anonymous, text)


def _tree_memory(pid: int) -> tuple[int, int, int]:
    """(sum of VmRSS, largest VmHWM, sum of RssAnon) of a process and its descendants, bytes."""
    pids = [pid]
    try:
        pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0, 0
    fields = [read_memory_fields(each) for each in pids]
    return (
        sum(each.get("VmRSS", 0) for each in fields),
        max(each.get("VmHWM", 0) for each in fields),
        sum(each.get("RssAnon", 0) for each in fields),
    )


def read_memory_fields(pid: int) -> dict[str, int]:
    """Those of :func:`~llmc.runtimes.bench.workers.protocol.memory_fields` of a process."""
    return memory_fields(Path(f"/proc/{pid}/status"))
