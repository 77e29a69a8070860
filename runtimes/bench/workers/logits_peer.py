"""A peer that says what it predicts: the logits of windows of text, from its own process.

In: ``NAME=PYTHON:FILE``. Out: :class:`LogitsPeer`, which runs a worker and reads what it writes.

Logits are too many for the workers' lines of JSON: a worker writes those of one window into a file of floats, which
lies in memory where there is such a folder, and is overwritten by the next.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.workers.peers import PEERS, PeerChoice
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command
from llmc.runtimes.session.engine import FloatArray

MEMORY = Path("/dev/shm")
WindowLogits = Callable[[Sequence[int], int], FloatArray]
"""Tokens of a window and its first scored position in; [positions, vocab] float32 of those up to the last but one."""


@dataclass(frozen=True)
class LogitsPeer:
    """A model file, and the program that runs it.

    Attributes:
        label: Its name in a report.
        command: Starts the worker.
        path: What it opens, as it is.
    """

    label: str
    command: tuple[str, ...]
    path: Path

    @classmethod
    def of(cls, choice: PeerChoice) -> LogitsPeer:
        """What ``--peer`` chose.

        Raises:
            UsageError: a file that is not there, a file that the peer would have to make, or a peer that gives no
                logits.
        """
        peer = PEERS[choice.name]
        if not peer.gives_logits:
            able = ", ".join(name for name, each in PEERS.items() if each.gives_logits)
            raise UsageError(f"peer {choice.name} gives no logits; those that do: {able}")
        if choice.quantize is not None:
            raise UsageError(f"peer {choice.name}: a file is evaluated as it is; leave @{choice.quantize} away")
        for path in (choice.python, choice.source):
            if not path.exists():
                raise UsageError(f"peer {choice.name}: {path} does not exist")
        arguments = peer.variants[choice.variant] if choice.variant is not None else ()
        command = peer_command(choice.python.absolute(), peer.module, *arguments)
        return cls(choice.source.stem, command, choice.source.resolve())

    @contextmanager
    def opened(self, threads: int | None) -> Iterator[tuple[dict[str, Any], WindowLogits]]:
        """The worker with the model loaded: its info, as ``EngineInfo`` has it, and its logits.

        Raises:
            EngineError: the worker cannot be started, or refuses the model.
        """
        with (
            WorkerProcess(self.label, self.command) as worker,
            tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        ):
            info: dict[str, Any] = worker.request("open", path=str(self.path), threads=threads)["info"]
            file = Path(folder) / "logits"

            def logits(tokens: Sequence[int], first: int) -> FloatArray:
                worker.request("logits", tokens=[int(token) for token in tokens], first=first, file=str(file))
                values = np.fromfile(file, np.float32)
                shape = len(tokens) - 1 - first, int(info["vocab_size"])
                if values.size != shape[0] * shape[1]:
                    raise EngineError(f"{self.label}: {values.size} logits came where {list(shape)} were asked for")
                return values.reshape(shape)

            yield info, logits
