"""A worker seen from the benchmark's side.

In: a command that starts a worker (protocol.py). Out: :class:`WorkerProcess`, whose :meth:`~WorkerProcess.request`
asks and returns the answer, or raises what the worker raised.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from llmc.compiler.base import errors
from llmc.compiler.base.errors import EngineError, LlmcError
from llmc.runtimes.machine.load import cpu_seconds

log = logging.getLogger(__name__)

LLMC_WORKER: tuple[str, ...] = (sys.executable, "-P", "-m", "llmc.runtimes.bench.workers.worker")
REQUEST_TIMEOUT_S = 1800.0
CLOSE_TIMEOUT_S = 10.0
STDERR_TAIL = 2000

# A peer's interpreter has no llmc: this makes the bench folder importable under its usual name, and nothing else.
_PEER_BOOTSTRAP = """
import runpy, sys, types
packages = ("llmc", "llmc.runtimes", "llmc.runtimes.bench", "llmc.runtimes.bench.workers")
for name in packages:
    module = types.ModuleType(name)
    module.__path__ = [sys.argv[1]] if name == packages[-1] else []
    sys.modules[name] = module
sys.argv[:] = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def peer_command(python: Path, module: str, *arguments: str) -> tuple[str, ...]:
    """Command that runs ``module`` of this folder as a worker under another interpreter, isolated from this one's."""
    return (str(python), "-I", "-c", _PEER_BOOTSTRAP, str(Path(__file__).resolve().parent), module, *arguments)


class WorkerProcess:
    """One worker, from start to :meth:`close`; use it as a context manager."""

    def __init__(self, label: str, command: Sequence[str]) -> None:
        """Start the worker.

        Raises:
            EngineError: the command cannot be started.
        """
        self.label = label
        self._buffer = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            self._stderr.close()
            raise EngineError(f"{label}: cannot start {command[0]}: {error}") from error
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EngineError(f"{label}: the worker has no pipes")
        self._stdin, self._stdout = stdin, stdout
        self._accounting = psutil.Process(self._process.pid)

    def request(self, command: str, *, timeout_s: float = REQUEST_TIMEOUT_S, **fields: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            LlmcError: the worker's own error, by its class.
            EngineError: the worker ended or did not answer in ``timeout_s`` seconds, or failed otherwise.
        """
        try:
            self._stdin.write(json.dumps({"command": command, **fields}).encode() + b"\n")
            self._stdin.flush()
        except OSError as error:
            raise self._ended(command) from error
        answer = json.loads(self._read_line(command, time.monotonic() + timeout_s))
        if "error" not in answer:
            return dict(answer)
        known = getattr(errors, answer["kind"], None)
        if isinstance(known, type) and issubclass(known, LlmcError):
            raise known(f"{self.label}: {answer['error']}")
        raise EngineError(
            f"{self.label}: {command} failed, {answer['kind']}: {answer['error']}\n{self._stderr_tail()}".rstrip()
        )

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """CPU seconds that the worker used since its start."""
        return cpu_seconds([self._accounting])

    def close(self) -> None:
        """End the worker: ask, then terminate, then kill."""
        process = self._process
        try:
            if process.poll() is None:
                self._stdin.write(b'{"command": "close"}\n')
                self._stdin.flush()
            process.wait(CLOSE_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            log.warning("%s: the worker did not end when asked; killing it", self.label)
            process.kill()
            process.wait()
        finally:
            with contextlib.suppress(OSError):  # what a dead worker did not read is lost
                self._stdin.close()
            self._stdout.close()
            self._stderr.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()  # the benchmark failed or was interrupted: a running worker would not listen
        self.close()

    def _read_line(self, command: str, deadline: float) -> bytes:
        descriptor = self._stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._process.kill()
                raise EngineError(f"{self.label}: no answer to {command!r} in time; the worker was stopped")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise self._ended(command)
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self, command: str) -> EngineError:
        self._process.kill()
        status = self._process.wait()
        return EngineError(
            f"{self.label}: the worker ended (status {status}) during {command!r}\n{self._stderr_tail()}".rstrip()
        )

    def _stderr_tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - STDERR_TAIL))
        return self._stderr.read().decode(errors="replace").strip()
