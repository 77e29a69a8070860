"""Where a session's buffers live: memory, copies, events and recorded launches of one device.

In: nothing. Out: :class:`Device`, implemented for a CUDA GPU (``cuda.py``) and, so that the same session runs
and is tested where there is none, for the host (:class:`HostDevice`).

All work of a device is queued in one order (one CUDA stream); a call returns before its work is done unless it says
that it waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Buffer:
    """Memory of a device.

    Attributes:
        address: Of its first byte.
        nbytes: Its size.
        owner: What keeps the memory alive, where the device does not.
    """

    address: int
    nbytes: int
    owner: Any = None


class Moment(Protocol):
    """A point in the queue, as a CUDA event."""

    def wait(self) -> None:
        """Return when the work queued before it is done."""

    def seconds_since(self, earlier: Moment) -> float:
        """Time on the device between two moments that have passed."""


class Recording(Protocol):
    """Launches that were recorded once and are queued again as a whole."""

    def launch(self) -> None:
        """Queue them."""


class Device(Protocol):
    """One device and its queue."""

    ort_name: str
    """ONNX Runtime's name for memory there: ``cuda`` or ``cpu``."""
    description: str
    """As ``cuda:0 NVIDIA H100 80GB HBM3``."""
    stream: int
    """The queue's handle, for libraries that compute on it; 0 where it has none."""

    def allocate(self, nbytes: int) -> Buffer:
        """Memory filled with zeros.

        Raises:
            EngineError: there is not so much.
        """

    def free(self, buffer: Buffer) -> None:
        """Give memory back, after waiting for what uses it."""

    def free_bytes(self) -> int:
        """Memory that can be allocated now."""

    def used_bytes(self) -> int | None:
        """Memory in use, by whatever program; None where it is the host's."""

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Queue a copy of an array, which may be changed as soon as this returns, to ``offset`` bytes of a buffer."""

    def download(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Queue a copy to an array that :meth:`host_array` made; its content is valid after a later :meth:`wait`."""

    def copy_pieces(self, source: Buffer, target: Buffer, count: int, nbytes: int, strides: tuple[int, int]) -> None:
        """Queue a copy of ``count`` pieces of ``nbytes``, ``strides`` bytes apart in the source and in the target."""

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Host memory that the device can write to while the host goes on (pinned)."""

    def mark(self) -> Moment:
        """The moment when everything queued so far is done."""

    def record(self, work: Callable[[], None]) -> Recording:
        """Run ``work``, which queues launches and allocates nothing, and keep them instead of running them.

        Raises:
            EngineError: something in it cannot be recorded.
        """

    def wait(self) -> None:
        """Return when everything queued is done."""


class HostDevice:
    """The host's own memory; everything is done at once."""

    ort_name = "cpu"
    description = "cpu"
    stream = 0

    def allocate(self, nbytes: int) -> Buffer:
        """Zeroed memory."""
        memory = np.zeros(max(nbytes, 1), np.uint8)
        return Buffer(memory.ctypes.data, nbytes, memory)

    def free(self, buffer: Buffer) -> None:
        """NumPy frees it with the last reference."""

    def free_bytes(self) -> int:
        """Memory that is available."""
        import psutil

        return int(psutil.virtual_memory().available)

    def used_bytes(self) -> int | None:
        """The host's memory is measured from outside."""
        return None

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Copy now."""
        content = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        buffer.owner[offset : offset + content.nbytes] = content

    def download(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Copy now."""
        array.reshape(-1).view(np.uint8)[:] = buffer.owner[offset : offset + array.nbytes]

    def copy_pieces(self, source: Buffer, target: Buffer, count: int, nbytes: int, strides: tuple[int, int]) -> None:
        """Copy now."""
        for piece in range(count):
            begin, end = piece * strides[0], piece * strides[1]
            target.owner[end : end + nbytes] = source.owner[begin : begin + nbytes]

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An ordinary array."""
        return np.zeros(shape, dtype)

    def mark(self) -> Moment:
        """Now."""
        return _Instant(time.perf_counter())

    def record(self, work: Callable[[], None]) -> Recording:
        """Keep the work itself."""
        return _Repeated(work)

    def wait(self) -> None:
        """Nothing is queued."""


@dataclass(frozen=True)
class _Instant:
    seconds: float

    def wait(self) -> None:
        """It has passed."""

    def seconds_since(self, earlier: Moment) -> float:
        assert isinstance(earlier, _Instant)
        return self.seconds - earlier.seconds


@dataclass(frozen=True)
class _Repeated:
    launch: Callable[[], None]
