"""Plants faults in copies of the checkout and runs the tests that must notice.

In: faults. Out: an :class:`Outcome` each, in the order in which they end.

A test's process is forked from a server that has imported the large libraries and nothing of llmc, which saves most
of a start; it imports llmc from its copy. Compiled kernels go to a cache of the copy's own.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from .faults import DOOR, FOLDERS, MARKERS, ROOT, Fault

_SERVER = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "numpy",
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "transformers",
    "hypothesis",
    "pytest",
]
_SKIPPED = shutil.ignore_patterns(
    ".git", ".venv", ".typing", "artifacts", "build", "dist", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info"
)
_FAILURES = ("FAILED", "ERROR")
_NOTICED = (1, 2)
"""pytest's exit codes: a test failed; the run was interrupted (a module or a conftest could not be imported)."""

Status = Literal["killed", "survived", "timeout", "broken", "stale"]


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a fault.

    Attributes:
        status: ``broken``: the tests could not be run (a name that pytest does not know); ``stale``: the source does
            not hold the text any more.
        seconds: Wall-clock time.
        said: The first line of pytest's summary that names a failure, or the end of its output.
    """

    fault: Fault
    status: Status
    seconds: float
    said: str = ""

    @property
    def noticed(self) -> bool:
        """Whether a test failed or did not end."""
        return self.status in ("killed", "timeout")


def plant_all(faults: Sequence[Fault], folder: Path, jobs: int, limit: float, budget: float) -> Iterator[Outcome]:
    """Plant each fault in a copy below ``folder``; as many copies as ``jobs``.

    Args:
        limit: Seconds after which tests count as hanging, which is noticing.
        budget: Seconds after which no further fault is begun.
    """
    _SERVER.set_forkserver_preload(_PRELOADED)
    copies: SimpleQueue[Path] = SimpleQueue()
    for job in range(jobs):
        copies.put(copy_checkout(folder / f"copy{job}"))
    end = time.monotonic() + budget

    def one(fault: Fault) -> Outcome | None:
        if time.monotonic() > end:
            return None
        copy = copies.get()
        try:
            return _try(fault, copy, limit)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        waiting: list[Future[Outcome | None]] = [pool.submit(one, fault) for fault in faults]
        try:
            for future in as_completed(waiting):
                if (outcome := future.result()) is not None:
                    yield outcome
        finally:
            for future in waiting:
                future.cancel()


def run_clean(tests: Sequence[str], folder: Path, limit: float) -> tuple[int | None, str]:
    """The tests without any fault: pytest's exit code (None: not finished) and its output's end."""
    _SERVER.set_forkserver_preload(_PRELOADED)
    copy = copy_checkout(folder / "clean")
    return _run_tests(copy, sorted(set(tests)), limit)


def copy_checkout(copy: Path) -> Path:
    """The checkout's files, and the folder from which ``llmc`` is imported."""
    shutil.copytree(ROOT, copy, ignore=_SKIPPED, symlinks=True)
    (copy / ".typing" / "llmc").mkdir(parents=True)
    for name in FOLDERS:
        (copy / ".typing" / "llmc" / name).symlink_to(copy / name)
    (copy / ".typing" / "llmc" / "__init__.py").symlink_to(copy / DOOR)
    return copy


def _try(fault: Fault, copy: Path, limit: float) -> Outcome:
    begin = time.monotonic()
    try:
        before = fault.plant(copy)
    except ValueError as error:
        return Outcome(fault, "stale", 0.0, str(error))
    try:
        code, said = _run_tests(copy, fault.tests, limit)
    finally:
        (copy / fault.file).write_text(before, encoding="utf-8")
    return Outcome(fault, _status(code, said), time.monotonic() - begin, said)


def _status(code: int | None, said: str) -> Status:
    """What an exit code means; None: not finished. A failure is believed that names a test, or is a crash."""
    if code is None:
        return "timeout"
    if code == 0:
        return "survived"
    return "killed" if code < 0 or (code in _NOTICED and said.startswith(_FAILURES)) else "broken"


def _run_tests(copy: Path, tests: Sequence[str], limit: float) -> tuple[int | None, str]:
    output = copy / ".output"
    output.unlink(missing_ok=True)
    process = _SERVER.Process(target=_pytest, args=(copy, tuple(tests), output))
    process.start()
    process.join(limit)
    code = process.exitcode
    if code is None and process.pid:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
    failures = [line for line in lines if line.startswith(_FAILURES)]
    return code, failures[0] if failures else "\n".join(lines[-15:])


def _pytest(copy: Path, tests: Sequence[str], output: Path) -> None:
    """In the child: import llmc from the copy, run the tests, exit with pytest's code."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(copy)
    sys.path[:] = [str(copy / ".typing"), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    os.environ.update(PYTHONPATH=str(copy / ".typing"), PYTHONDONTWRITEBYTECODE="1", HOME=str(copy))
    sys.dont_write_bytecode = True
    import pytest

    arguments = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    code = pytest.main([*arguments, "-m", MARKERS, *tests])
    sys.stdout.flush()
    os._exit(int(code))
