"""What this machine can do at most: reads of memory and arithmetic, a second each, once in a process.

In: a number of threads. Out: :class:`Ceilings`.

Compiled loops measure them, those of the library of CPU operators; where it cannot be had here, NumPy does, int8 is
not measured, and ``why`` says so. Threads are left to the system and pinned to cores in turn: the better of the two
is the ceiling, and where they differ the system moves threads about.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmc.runtimes.kernels.ceilings import CeilingKernels, ceiling_kernels
from llmc.runtimes.kernels.library import KernelsUnavailable
from llmc.runtimes.machine.arithmetic import Rate, measure_numpy, measure_rate
from llmc.runtimes.machine.bandwidth import Bandwidth, measure_read_bandwidth
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth
from llmc.runtimes.machine.thread_team import can_pin


@dataclass(frozen=True)
class DeviceCeilings:
    """A GPU's: copies, which stand for reads, and products of float16; None where one was not measured."""

    copies: CopyBandwidth | None
    matmul: Rate | None


@dataclass(frozen=True)
class Ceilings:
    """The machine's; each of the tuples has threads left to the system first, then pinned ones.

    Attributes:
        reads: Of memory.
        float32, int8: Multiplications and additions; empty where not measured.
        why: Why compiled loops did not measure it; else empty.
        device: Those of a GPU, where a subject runs on one.
    """

    reads: tuple[Bandwidth, ...]
    float32: tuple[Rate, ...] = ()
    int8: tuple[Rate, ...] = ()
    why: str = ""
    device: DeviceCeilings | None = None

    @property
    def read(self) -> Bandwidth:
        """The better of the two."""
        return max(self.reads, key=lambda bandwidth: bandwidth.bytes_per_second.median)

    @property
    def float_rate(self) -> float | None:
        """Operations of float32 in a second at most."""
        return best_rate(self.float32)

    @property
    def int8_rate(self) -> float | None:
        """Operations of int8 in a second at most."""
        return best_rate(self.int8)


def best_rate(rates: Sequence[Rate]) -> float | None:
    """The largest median; None of none."""
    return max((rate.operations_per_second.median for rate in rates), default=None)


@functools.cache
def measure_ceilings(threads: int) -> Ceilings:
    """Measure what ``threads`` threads, at least 1, do at most; a process measures it once."""
    ways = (False, True) if can_pin() else (False,)
    try:
        kernels = ceiling_kernels()
    except KernelsUnavailable as reason:
        why = f"measured with NumPy, without int8: {reason}"
        reads = tuple(measure_read_bandwidth(threads, pinned=way) for way in ways)
        return Ceilings(reads, (measure_numpy(),), (), why)

    def rates(work: Callable[[int], float]) -> tuple[Rate, ...]:
        return tuple(measure_rate(work, threads, kernel=kernels.variant, pinned=way) for way in ways)

    return Ceilings(tuple(_read(kernels, threads, way) for way in ways), rates(kernels.float32), rates(kernels.int8))


def _read(kernels: CeilingKernels, threads: int, pinned: bool) -> Bandwidth:
    return measure_read_bandwidth(threads, read=kernels.read, kernel=kernels.variant, pinned=pinned)
