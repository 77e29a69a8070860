"""Clocks for decode steps of a worker that has torch: the host's, or the device's by CUDA events.

In: a moment, noted after each step. Out: the seconds between them. Like the workers that use it, this file imports
torch and the standard library alone.
"""

from __future__ import annotations

import time
from typing import Any


class HostTicks:
    """Moments by the host's clock."""

    def __init__(self) -> None:
        self._ticks: list[float] = []

    def tick(self) -> None:
        """Note the moment."""
        self._ticks.append(time.perf_counter())

    def gaps(self) -> tuple[float, ...]:
        """Seconds between the moments."""
        return tuple(after - before for before, after in zip(self._ticks, self._ticks[1:]))  # noqa: B905


class StreamTicks(HostTicks):
    """A streamer for ``generate``: moments at which it has a step's tokens on the host. Its own take one row only."""

    def put(self, tokens: Any) -> None:
        """Note a step's tokens, [batch]; the prompt, [batch, prompt], which comes before them, is none."""
        if tokens.ndim == 1:
            self.tick()

    def end(self) -> None:
        """Nothing is held back."""


class CudaTicks:
    """Moments at which the device has done what was launched before: CUDA events."""

    def __init__(self) -> None:
        self._ticks: list[Any] = []

    def tick(self) -> None:
        """Record an event behind what is launched."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._ticks.append(event)

    def gaps(self) -> tuple[float, ...]:
        """Seconds between the events; waits for the last one."""
        self._ticks[-1].synchronize()
        pairs = zip(self._ticks, self._ticks[1:])  # noqa: B905
        return tuple(before.elapsed_time(after) / 1e3 for before, after in pairs)


def make_ticks(device: Any) -> HostTicks | CudaTicks:
    """The clock for a device."""
    return CudaTicks() if device.type == "cuda" else HostTicks()
