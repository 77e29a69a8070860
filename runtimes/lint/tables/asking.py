"""Asks a runtime that is installed in another environment, and survives its end.

In: the Python of that environment, models with the arrays to run them on. Out: one :class:`Answer` each, in order.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.lint.tables.ask import array_to_json, to_arrays

SCRIPT = Path(__file__).with_name("ask.py")
PATIENCE_S = 20.0
"""Seconds after which a runtime that does not answer is ended: some graphs make one run for ever."""
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Answer:
    """What a runtime made of a model.

    Attributes:
        taken: It opened the model and, where there were arrays, ran it.
        message: Why not.
        unread: Inputs of the model that nothing reads.
        outputs: What it computed; None where it was not run, or for an output that is no tensor.
        graph: The serialized graph that ran in the model's place, where the runtime tells.
        crashed: The process ended.
    """

    taken: bool
    message: str = ""
    unread: tuple[str, ...] = ()
    outputs: Sequence[npt.NDArray[Any] | None] | None = None
    graph: bytes = b""
    crashed: bool = False


class Asker:
    """A process that answers; started anew where a model ends it."""

    def __init__(self, runtime: str, python: str = sys.executable) -> None:
        self.runtime = runtime
        self._command = [python, str(SCRIPT), runtime]
        self._process: subprocess.Popen[str] | None = None
        self.version = ""
        self.kernels: list[list[Any]] = []
        self.schemas: list[list[Any]] = []

    def __enter__(self) -> Asker:
        self._start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def ask(self, model: bytes, inputs: Arrays | None = None, *, optimize: bool = False) -> Answer:
        """Show one model; with arrays, run it (TensorRT: build it); ``optimize``: as ONNX Runtime does by default."""
        request = {
            "model": base64.b64encode(model).decode(),
            "inputs": None if inputs is None else {name: array_to_json(array) for name, array in inputs.items()},
            "optimize": optimize,
        }
        try:
            self._stream("stdin").write(json.dumps(request) + "\n")
            self._stream("stdin").flush()
            stdout = self._stream("stdout")
            line = stdout.readline() if select.select([stdout], [], [], PATIENCE_S)[0] else ""
        except BrokenPipeError:
            line = ""
        if not line:
            self.restart()
            return Answer(False, "the runtime ended the process, or did not come to an end", crashed=True)
        return _answer(json.loads(line))

    def restart(self) -> None:
        """Go on in a new process: a model that went wrong may have left its mark on the old one."""
        self._stop()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        line = self._stream("stdout").readline()
        if not line:
            raise EngineError(
                f"{' '.join(self._command)} does not start; name a Python in which the runtime is installed"
            )
        hello = json.loads(line)
        self.version, self.kernels, self.schemas = hello["version"], hello["kernels"], hello["schemas"]

    def _stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # OpenVINO starts processes of its own
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def _stream(self, name: str) -> IO[str]:
        stream: IO[str] | None = getattr(self._process, name)
        assert stream is not None
        return stream


def _answer(value: dict[str, Any]) -> Answer:
    outputs = value.get("outputs")
    if outputs is not None:
        outputs = [None if item is None else to_arrays({"": item})[""] for item in outputs]
    return Answer(
        value["taken"],
        value["message"],
        tuple(value.get("unread") or ()),
        outputs,
        base64.b64decode(value.get("graph") or ""),
    )
