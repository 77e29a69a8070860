"""A peer that says what it predicts: the logits of windows of text, from its own process.

In: ``NAME=PYTHON:SOURCE``, or a peer by its name with its model. Out: :class:`LogitsPeer`, which runs a worker and
reads what it writes.

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
from llmc.runtimes.bench.artifact_facts import disk_bytes
from llmc.runtimes.bench.workers.peers import PEERS, PeerChoice, PreparedPeer, prepared_peer
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command
from llmc.runtimes.session.engine import FloatArray

MEMORY = Path("/dev/shm")
WindowLogits = Callable[[Sequence[int], int], FloatArray]
"""Tokens of a window and its first scored position in; [positions, vocab] float32 of those up to the last but one."""


def require_logits(peer: str, name: str) -> None:
    """Refuse a peer, one of :data:`PEERS`, that a user calls ``name`` and whose worker gives no logits.

    Raises:
        UsageError: it names those that do.
    """
    if not PEERS[peer].gives_logits:
        able = ", ".join(key for key, each in PEERS.items() if each.gives_logits)
        raise UsageError(f"peer {name} gives no logits; those that do: {able}")


@dataclass(frozen=True)
class LogitsPeer:
    """A model, and the program that runs it.

    Attributes:
        label: Its name in a report.
        command: Starts the worker.
        path: The file or folder that it opens, as it is.
    """

    label: str
    command: tuple[str, ...]
    path: Path

    @property
    def bytes(self) -> int:
        """Of the file, or of all files of the folder."""
        return disk_bytes(self.path)

    @classmethod
    def of(cls, choice: PeerChoice) -> LogitsPeer:
        """What ``--peer`` chose.

        Raises:
            UsageError: a file that is not there, a file that the peer would have to make, or a peer that gives no
                logits.
            EngineError: the peer's interpreter cannot run it, or the peer refused the model.
        """
        peer = PEERS[choice.name]
        require_logits(choice.name, choice.name)
        if not peer.quantizes:
            return cls.of_prepared(prepared_peer(choice))
        if choice.quantize is not None:
            raise UsageError(f"peer {choice.name}: a file is evaluated as it is; leave @{choice.quantize} away")
        for path in (choice.python, choice.source):
            if not path.exists():
                raise UsageError(f"peer {choice.name}: {path} does not exist")
        arguments = peer.variants[choice.variant] if choice.variant is not None else ()
        command = peer_command(choice.python.absolute(), peer.module, *arguments)
        return cls(choice.source.stem, command, choice.source.resolve())

    @classmethod
    def of_prepared(cls, peer: PreparedPeer) -> LogitsPeer:
        """A peer with its model, in the first of the variants that fit: they compute the same."""
        return cls(peer.label, next(iter(peer.commands.values())), peer.path)

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
