"""Copy bandwidth of a GPU's memory, the ceiling of a decode step: ``python -m llmc.runtimes.machine.copy_bandwidth``.

In: CUDA's device 0. Out: :class:`CopyBandwidth`; as a program, its JSON on stdout.

One buffer, several times the L2 cache, is copied to another on the device; the bytes read and those written count.
Decoding only reads, but what a GPU's memory does per second hardly depends on the direction, and a copy needs no
kernel of our own. The benchmark measures it in a process of its own: a CUDA context keeps hundreds of megabytes.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.runtimes.machine.own_process import measured_apart, print_measured
from llmc.runtimes.machine.summary import Summary

SMALLEST_BUFFER = 1 << 30
CACHE_MULTIPLE = 8
LARGEST_MEMORY_SHARE = 0.25
COPIES_IN_A_PASS = 10
TIMEOUT_S = 120.0
COMMAND = (sys.executable, "-P", "-m", "llmc.runtimes.machine.copy_bandwidth")


@dataclass(frozen=True)
class CopyBandwidth:
    """A measured copy bandwidth of one device.

    Attributes:
        bytes_per_second: Bytes read plus bytes written; median, least and most over the passes.
        buffer_bytes: Bytes of the buffer that is copied.
        cache_bytes: The device's L2 cache.
    """

    bytes_per_second: Summary
    buffer_bytes: int
    cache_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CopyBandwidth:
        """What :meth:`to_json` made."""
        return cls(Summary(**value["bytes_per_second"]), value["buffer_bytes"], value["cache_bytes"])


def measure_copy_bandwidth(*, buffer_bytes: int | None = None, passes: int = 7) -> CopyBandwidth:
    """Copy a buffer ``passes`` times ten times, after one pass that is not counted, between CUDA events.

    Args:
        buffer_bytes: Default: 8 times the L2 cache, at least 1 GiB, at most a quarter of the free memory.
        passes: At least 1.

    Raises:
        MissingDependencyError: ``cuda.bindings`` is not installed.
        EngineError: CUDA refused: no device, no memory.
    """
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependencyError(
            "the copy bandwidth of a GPU needs cuda.bindings: install cuda-python"
        ) from error
    free, _ = _checked(runtime, runtime.cudaMemGetInfo())
    (cache,) = _checked(runtime, runtime.cudaDeviceGetAttribute(runtime.cudaDeviceAttr.cudaDevAttrL2CacheSize, 0))
    size = buffer_bytes or min(max(SMALLEST_BUFFER, CACHE_MULTIPLE * cache), int(free * LARGEST_MEMORY_SHARE))
    with _buffer(runtime, size) as source, _buffer(runtime, size) as target:
        seconds = [_timed_pass(runtime, source, target, size) for _ in range(passes + 1)][1:]
    return CopyBandwidth(Summary.of([2 * size * COPIES_IN_A_PASS / s for s in seconds]), size, int(cache))


def _timed_pass(runtime: Any, source: int, target: int, size: int) -> float:
    """Seconds of ten copies, by events around them."""
    begin, end = (_checked(runtime, runtime.cudaEventCreate())[0] for _ in range(2))
    _checked(runtime, runtime.cudaEventRecord(begin, 0))
    for _ in range(COPIES_IN_A_PASS):
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        _checked(runtime, runtime.cudaMemcpyAsync(target, source, size, kind, 0))
    _checked(runtime, runtime.cudaEventRecord(end, 0))
    _checked(runtime, runtime.cudaEventSynchronize(end))
    (milliseconds,) = _checked(runtime, runtime.cudaEventElapsedTime(begin, end))
    for event in (begin, end):
        _checked(runtime, runtime.cudaEventDestroy(event))
    return float(milliseconds) / 1e3


@contextlib.contextmanager
def _buffer(runtime: Any, size: int) -> Iterator[int]:
    """Memory on the device, written once: reads of memory that was never written can be cheaper."""
    (pointer,) = _checked(runtime, runtime.cudaMalloc(size))
    try:
        _checked(runtime, runtime.cudaMemset(pointer, 1, size))
        yield int(pointer)
    finally:
        _checked(runtime, runtime.cudaFree(pointer))


def _checked(runtime: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = answer
    if int(status):
        raise EngineError(f"CUDA: {runtime.cudaGetErrorString(status)[1].decode()}")
    return tuple(values)


def copy_bandwidth_of_device() -> CopyBandwidth | None:
    """Measure in a process of its own; None, and a warning in the log, where it cannot be measured."""
    found = measured_apart(COMMAND, TIMEOUT_S, "the GPU's copy bandwidth")
    return None if found is None else CopyBandwidth.from_json(found)


def main() -> int:
    """Measure and print JSON; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    return print_measured(measure_copy_bandwidth)


if __name__ == "__main__":
    sys.exit(main())
