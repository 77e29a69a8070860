"""A CUDA GPU: one stream, plain allocations, events, graphs; through NVIDIA's ``cuda.bindings``.

In: a device number. Out: the :class:`~llmc.runtimes.device.interface.Device` protocol.

A recording is a CUDA graph captured from the stream, whatever runs on it: a whole decode step, model and sampler, is
one launch. The runtime that computes on the stream must not synchronize or allocate while it is captured.
"""

from __future__ import annotations

import ctypes
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.runtimes.device.interface import Array, Buffer, Moment, Recording

SUCCESS = 0


def cuda_devices() -> int:
    """GPUs that can be used here; 0 without a driver or without the package."""
    try:
        from cuda.bindings import runtime

        error, count = runtime.cudaGetDeviceCount()
    except (ImportError, RuntimeError):  # no package; no libcudart, or no driver behind it
        return 0
    return int(count) if int(error) == SUCCESS else 0


def require_gpu(directory: Path) -> None:
    """Raise EngineError where there is no GPU to open an engine on."""
    if not cuda_devices():
        raise EngineError(
            f"{directory} is an engine for a CUDA GPU, and there is none here, or no driver or cuda-bindings for "
            "it; `llmc doctor` says what is missing"
        )


class CudaDevice:
    """One GPU; see :class:`llmc.runtimes.device.interface.Device`."""

    ort_name = "cuda"

    def __init__(self, index: int = 0) -> None:
        """Choose a GPU and make a stream on it.

        Raises:
            MissingDependencyError: cuda-bindings is not installed.
            EngineError: there is no such GPU.
        """
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise MissingDependencyError(
                "cuda-bindings is not installed; pip install 'llmc-toolchain[cuda]'"
            ) from error
        if not 0 <= index < cuda_devices():
            raise EngineError(f"there is no CUDA device {index} here; `llmc doctor` shows what there is")
        self._cuda = runtime
        self.index = index
        self._do("cudaSetDevice", index)
        self._stream = self._do("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._sizes: dict[int, int] = {}
        properties = self._do("cudaGetDeviceProperties", index)
        self.description = f"cuda:{index} {properties.name.decode().strip(chr(0))}"
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.stream = int(self._stream)

    def allocate(self, nbytes: int) -> Buffer:
        """Zeroed device memory."""
        size = max(nbytes, 256)
        error, address = self._cuda.cudaMalloc(size)
        if int(error) != SUCCESS:
            self._cuda.cudaGetLastError()
            free = self.free_bytes()
            raise EngineError(
                f"{size / 2**30:.2f} GiB of GPU memory are needed and {free / 2**30:.2f} GiB are free; "
                "use a shorter context, fewer rows or another program's memory"
            )
        self._sizes[int(address)] = size
        self._do("cudaMemsetAsync", address, 0, size, self._stream)
        return Buffer(int(address), nbytes)

    def free(self, buffer: Buffer) -> None:
        """Free device memory."""
        if self._sizes.pop(buffer.address, None) is not None:
            self.wait()
            self._do("cudaFree", buffer.address)

    def free_bytes(self) -> int:
        """Free memory of the GPU, whoever uses the rest."""
        return int(self._do("cudaMemGetInfo")[0])

    def used_bytes(self) -> int | None:
        """Memory of the GPU that is not free."""
        free, total = self._do("cudaMemGetInfo")
        return int(total) - int(free)

    def upload(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Copy from pageable memory: CUDA has read it when the call returns."""
        content = np.ascontiguousarray(array)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", buffer.address + offset, content.ctypes.data, content.nbytes, kind, self._stream)

    def download(self, buffer: Buffer, array: Array, offset: int = 0) -> None:
        """Queue a copy to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", array.ctypes.data, buffer.address + offset, array.nbytes, kind, self._stream)

    def copy_pieces(self, source: Buffer, target: Buffer, count: int, nbytes: int, strides: tuple[int, int]) -> None:
        """Queue one two-dimensional copy within the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        to, origin = (target.address, strides[1]), (source.address, strides[0])
        self._do("cudaMemcpy2DAsync", *to, *origin, nbytes, count, kind, self._stream)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Pinned host memory, freed with the array, after waiting for what is queued to write to it."""
        cuda, stream, kind = self._cuda, self._stream, np.dtype(dtype)
        count = math.prod(shape)
        size = max(1, count * kind.itemsize)
        error, address = cuda.cudaHostAlloc(size, 0)
        if int(error) != SUCCESS:
            cuda.cudaGetLastError()
            raise EngineError(f"{size} bytes of pinned host memory cannot be allocated")

        def release() -> None:
            # A copy to it may still be queued: whoever ordered it has gone without waiting.
            cuda.cudaStreamSynchronize(stream)
            cuda.cudaFreeHost(int(address))

        memory: Any = (ctypes.c_uint8 * size).from_address(int(address))
        weakref.finalize(memory, release)
        array: Array = np.frombuffer(memory, kind, count).reshape(shape)
        return array

    def mark(self) -> Moment:
        """An event on the stream."""
        event = self._do("cudaEventCreate")
        self._do("cudaEventRecord", event, self._stream)
        return _Event(self, event)

    def record(self, work: Callable[[], None]) -> Recording:
        """Capture the stream while ``work`` runs."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.wait()
        with _no_collection():
            self._do("cudaStreamBeginCapture", self._stream, mode)
            try:
                work()
            except BaseException:
                error, graph = self._cuda.cudaStreamEndCapture(self._stream)
                if int(error) == SUCCESS:
                    self._cuda.cudaGraphDestroy(graph)
                self._cuda.cudaGetLastError()
                raise
            graph = self._do("cudaStreamEndCapture", self._stream)
        try:
            return _Graph(self, graph, self._do("cudaGraphInstantiate", graph, 0))
        except EngineError:
            self._cuda.cudaGraphDestroy(graph)
            raise

    def launch(self, executable: Any) -> None:
        """Queue a captured graph."""
        self._do("cudaGraphLaunch", executable, self._stream)

    def wait(self) -> None:
        """Wait for the stream.

        Raises:
            EngineError: something that was queued failed.
        """
        self._do("cudaStreamSynchronize", self._stream)

    def _do(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; its result, or an error in words."""
        error, *results = getattr(self._cuda, function)(*arguments)
        if int(error) != SUCCESS:
            text = self._cuda.cudaGetErrorString(error)[1]
            words = text.decode() if isinstance(text, bytes) else str(text)
            # The next call would be told of it otherwise.
            self._cuda.cudaGetLastError()
            raise EngineError(f"CUDA failed in {function}: {words}")
        return results[0] if len(results) == 1 else results


class _Event:
    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device, self._event = device, event

    def wait(self) -> None:
        self._device._do("cudaEventSynchronize", self._event)

    def seconds_since(self, earlier: Moment) -> float:
        assert isinstance(earlier, _Event)
        self.wait()
        return float(self._device._do("cudaEventElapsedTime", earlier._event, self._event)) / 1e3

    def __del__(self) -> None:
        self._device._cuda.cudaEventDestroy(self._event)


class _Graph:
    def __init__(self, device: CudaDevice, graph: Any, executable: Any) -> None:
        self._device, self._graph, self._executable = device, graph, executable

    def launch(self) -> None:
        self._device.launch(self._executable)

    def __del__(self) -> None:
        self._device._cuda.cudaGraphExecDestroy(self._executable)
        self._device._cuda.cudaGraphDestroy(self._graph)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector: what it destroys may free memory, and that invalidates a capture."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
