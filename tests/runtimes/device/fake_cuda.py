"""A stand-in for ``cuda.bindings.runtime``: one GPU whose memory is the host's, and a record of the calls.

Every function gives what the real one gives, a tuple with the error first. ``fail[name]`` is the error that a
function gives from now on. Work that is queued elsewhere than on the one stream, and a copy in another direction than
it says, fail an assertion.
"""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

OUT_OF_MEMORY, INVALID_PITCH, CAPTURE_INVALIDATED = 2, 12, 901
STREAM = 77


class FakeCuda:
    """The module; attributes are looked up as its functions."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, devices: int = 1, total: int = 1 << 20) -> None:
        self.devices, self.total = devices, total
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.alive = {"graph": 0, "executable": 0, "event": 0}
        self.capturing = False
        self.time = 0.0
        self.device = -1

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                if name == "cudaStreamEndCapture":
                    self.capturing = False
                return (self.fail[name], None)
            result = getattr(self, f"_{name}", lambda *_: ())(*arguments)
            return (0, *(result if isinstance(result, tuple) else (result,)))

        return call

    @property
    def used(self) -> int:
        return sum(len(array) for array in self.memory.values())

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        words = {
            OUT_OF_MEMORY: b"out of memory",
            INVALID_PITCH: b"invalid pitch argument",
            CAPTURE_INVALIDATED: b"capture invalidated",
        }
        return (0, words[error])

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:  # noqa: N802
        if size > self.total - self.used:
            return (OUT_OF_MEMORY, None)
        array = np.full(size, 255, np.uint8)
        self.memory[array.ctypes.data] = array
        return (0, array.ctypes.data)

    def _cudaGetDeviceCount(self) -> int:  # noqa: N802
        return self.devices

    def _cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        return SimpleNamespace(name=b"Fake GPU\0\0", major=9, minor=0)

    def _cudaSetDevice(self, index: int) -> tuple[()]:  # noqa: N802
        self.device = index
        return ()

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return STREAM

    def _cudaStreamSynchronize(self, stream: int) -> tuple[()]:  # noqa: N802
        assert stream == STREAM
        return ()

    def _cudaGraphLaunch(self, executable: str, stream: int) -> tuple[()]:  # noqa: N802
        assert stream == STREAM
        return ()

    def holds(self, address: int, size: int) -> bool:
        """Whether the bytes are the device's."""
        return any(begin <= address and address + size <= begin + len(array) for begin, array in self.memory.items())

    def _cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return (self.total - self.used, self.total)

    def _cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[()]:  # noqa: N802
        assert stream == STREAM
        ctypes.memset(address, value, size)
        return ()

    def _cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[()]:
        assert stream == STREAM
        assert (self.holds(source, size), self.holds(to, size)) == {1: (False, True), 2: (True, False)}[kind]
        ctypes.memmove(to, source, size)
        return ()

    def cudaMemcpy2DAsync(  # noqa: N802
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[int]:
        self.calls.append("cudaMemcpy2DAsync")
        assert (kind, stream) == (3, STREAM)
        if width > min(to_pitch, pitch):
            return (INVALID_PITCH,)
        for row in range(height):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return (0,)

    def _cudaFree(self, address: int) -> tuple[()]:  # noqa: N802
        del self.memory[address]
        return ()

    def _cudaHostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        array = np.zeros(size, np.uint8)
        self.pinned[array.ctypes.data] = array
        return int(array.ctypes.data)

    def _cudaFreeHost(self, address: int) -> tuple[()]:  # noqa: N802
        del self.pinned[address]
        return ()

    def _cudaEventCreate(self) -> Any:  # noqa: N802
        self.alive["event"] += 1
        return SimpleNamespace(time=None)

    def _cudaEventRecord(self, event: Any, stream: int) -> tuple[()]:  # noqa: N802
        assert stream == STREAM
        self.time += 2.5
        event.time = self.time
        return ()

    def _cudaEventElapsedTime(self, begin: Any, end: Any) -> float:  # noqa: N802
        return float(end.time - begin.time)

    def _cudaEventDestroy(self, event: Any) -> tuple[()]:  # noqa: N802
        self.alive["event"] -= 1
        return ()

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[()]:  # noqa: N802
        assert (stream, mode) == (STREAM, 1)
        self.capturing = True
        return ()

    def _cudaStreamEndCapture(self, stream: int) -> str:  # noqa: N802
        self.capturing = False
        self.alive["graph"] += 1
        return "graph"

    def _cudaGraphInstantiate(self, graph: str, flags: int) -> str:  # noqa: N802
        self.alive["executable"] += 1
        return "executable"

    def _cudaGraphExecDestroy(self, executable: str) -> tuple[()]:  # noqa: N802
        self.alive["executable"] -= 1
        return ()

    def _cudaGraphDestroy(self, graph: str) -> tuple[()]:  # noqa: N802
        self.alive["graph"] -= 1
        return ()


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda | None) -> None:
    """Let ``from cuda.bindings import runtime`` give the stand-in; None: the package is not installed."""
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    if fake is not None:
        bindings.runtime = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
