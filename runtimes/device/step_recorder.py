"""Decode steps as one launch: recorded once for each shape of the cache and each sampler behind them.

In: a decoder, its buffers and rows. Out: :class:`StepRecorder`, which the session and its decode loops share.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from llmc.runtimes.device.cache_rows import CacheRows
from llmc.runtimes.device.decoder import Decoder
from llmc.runtimes.device.interface import Buffer, Device, Recording
from llmc.runtimes.device.session_buffers import SessionBuffers

MOST_RECORDINGS = 16
"""Kept for later requests of the same shape; the oldest make room, so that memory is bounded."""
RUNS_BEFORE_RECORDING = 3
"""The runtime allocates on the first run of a shape, and lays its memory out anew on the second; neither can be
recorded."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class StepRecorder:
    """The decode step of a session's current rows and capacity, alone or with a sampler behind it."""

    def __init__(self, device: Device, decoder: Decoder, memory: SessionBuffers, rows: CacheRows) -> None:
        """Nothing is recorded yet."""
        self.device, self._decoder, self.memory, self.rows = device, decoder, memory, rows
        self._recordings: dict[Hashable, Recording] = {}
        self._binding: Any = None

    def run_step(self) -> None:
        """Queue a decode step on what lies in the session's buffers, launch by launch."""
        if self._binding is None:
            batch, capacity = self.rows.shape
            values, cache = self.memory.values(batch, 1, 1), self.memory.cache
            # The total stays what it was when the launches were recorded, so it is the most that there can be.
            self._binding = self._decoder.bind(values, cache, batch, capacity, capacity)
        self._decoder.run(self._binding)

    def step(self) -> Recording:
        """The recorded decode step."""
        return self.recorded(None, self.run_step, ())

    def recorded(
        self, sampler: Hashable, work: Callable[[], None], changed: Sequence[tuple[Buffer, int]]
    ) -> Recording:
        """What was recorded for the rows, the capacity and a sampler; where nothing was, ``work`` is recorded now.

        Args:
            sampler: What runs behind the decode step; None: nothing.
            work: Queues the step.
            changed: Buffers and their bytes that a step changes and that must stay as they are now.
        """
        key = (self.rows.shape, sampler)
        if key not in self._recordings:
            kept = [(buffer, self.device.host_array((size,), np.uint8)) for buffer, size in changed]
            for buffer, array in kept:
                self.device.download(buffer, array)
            for _ in range(RUNS_BEFORE_RECORDING):
                work()
                self.device.wait()
                # Each run is the first step again: a second one might write behind the cache's last slot.
                for buffer, array in kept:
                    self.device.upload(buffer, array)
            keep_newest(self._recordings, MOST_RECORDINGS - 1)
            self._recordings[key] = self.device.record(work)
        return self._recordings[key]

    def forget_binding(self) -> None:
        """The rows or the capacity have changed."""
        self._binding = None

    def forget(self) -> None:
        """Buffers have moved, or the decoder is another."""
        self._recordings.clear()
        self._binding = None


def keep_newest(kept: dict[Key, Value], count: int) -> list[Value]:
    """Drop the oldest entries beyond ``count``; returns what was dropped."""
    return [kept.pop(key) for key in list(kept)[: max(0, len(kept) - count)]]
