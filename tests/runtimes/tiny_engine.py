"""A tiny random Llama compiled for CUDA, opened on the host: the session, the graph and the samplers of a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmc.compiler.base.contract import LogitsKind
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.device.interface import Array, Buffer, HostDevice, Moment
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.onnxruntime import cuda_engine as onnxruntime_cuda_engine
from llmc.runtimes.session.engine import FloatArray, Int64Array, Session
from llmc.runtimes.session.padding import pad_prompts

from ..end_to_end.tiny import shared_model
from ..shared import Shared

PROMPTS = [[3, 14, 15, 92, 65, 35, 89], [79], [32, 38, 46, 26]]
TOLERANCE = 0.02
"""Logits up to 4 in float16, whose kernels add in another order for other shapes."""


def compiled(logits: LogitsKind = "last") -> Path:
    """The engine's directory, made once per test run."""
    shared = Shared.current()
    source = shared_model(shared)
    options = CompileOptions(ExportOptions(verify="off"), OptimizeOptions(target="cuda", logits=logits))
    return shared.make(f"tiny-llama-cuda-{logits}", lambda path: compile_model(str(source), path, options))


def open_tiny(logits: LogitsKind = "last", device: HostDevice | None = None) -> DeviceSession:
    """A session on the host."""
    session = onnxruntime_cuda_engine._open(compiled(logits), "onnxruntime-cpu", device or HostDevice())
    assert isinstance(session, DeviceSession)
    return session


def rows_of(prompts: list[list[int]]) -> tuple[Int64Array, Int64Array]:
    """Right-padded with a token that would change the logits if it were read; and the lengths."""
    return pad_prompts(prompts, pad_id=7)


def alone(session: Session, tokens: list[int]) -> FloatArray:
    """Logits after the last of one row's tokens, [vocab_size], from one forward on an empty cache."""
    session.reset(1, len(tokens))
    result: FloatArray = session.forward(np.array([tokens], np.int64)).host()[0, -1]
    return result


def reference(session: Session, rows: list[list[int]]) -> FloatArray:
    """:func:`alone` of each row, [batch, vocab_size]."""
    return np.stack([alone(session, row) for row in rows])


class CountingDevice(HostDevice):
    """The host, with a limit to its memory; tells what is allocated and how often work was recorded.

    Attributes:
        held: Address -> bytes of what is allocated and not freed.
        events: ``allocate``, ``free``, ``record``, in their order.
    """

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.held: dict[int, int] = {}
        self.events: list[str] = []

    def allocate(self, nbytes: int) -> Buffer:
        from llmc.compiler.base.errors import EngineError

        if nbytes > self.free_bytes():
            raise EngineError("no memory is left")
        buffer = super().allocate(nbytes)
        self.held[buffer.address] = nbytes
        self.events.append("allocate")
        return buffer

    def free(self, buffer: Buffer) -> None:
        del self.held[buffer.address]
        self.events.append("free")

    def free_bytes(self) -> int:
        return self.limit - sum(self.held.values())

    def record(self, work: Callable[[], None]):  # type: ignore[no-untyped-def]
        self.events.append("record")
        return super().record(work)


class LaggingDevice(HostDevice):
    """The host, where what is downloaded arrives only when somebody waits for it, as from a GPU's queue."""

    def __init__(self) -> None:
        self._queued = 0
        self._coming: list[tuple[int, Array, Array]] = []

    def download(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        self._queued += 1
        content = buffer.owner[offset : offset + array.nbytes].copy()
        self._coming.append((self._queued, array, content))

    def mark(self) -> Moment:
        return _LaggingMoment(self, self._queued, time.perf_counter())

    def wait(self) -> None:
        self.deliver(self._queued)

    def deliver(self, last: int) -> None:
        """Let what was queued up to here arrive."""
        for number, array, content in self._coming:
            if number <= last:
                array.reshape(-1).view(np.uint8)[:] = content
        self._coming = [coming for coming in self._coming if coming[0] > last]


@dataclass(frozen=True)
class _LaggingMoment:
    device: LaggingDevice
    queued: int
    seconds: float

    def wait(self) -> None:
        self.device.deliver(self.queued)

    def seconds_since(self, earlier: Moment) -> float:
        assert isinstance(earlier, _LaggingMoment)
        return self.seconds - earlier.seconds
