"""Devices: the host's memory, and a GPU's through a stand-in for CUDA's runtime."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError
from llmc.runtimes.device.cuda import CudaDevice, cuda_devices
from llmc.runtimes.device.interface import Device, HostDevice

from .fake_cuda import CAPTURE_INVALIDATED, OUT_OF_MEMORY, FakeCuda, install


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    install(monkeypatch, fake)
    return fake


@pytest.fixture(params=["host", "cuda"])
def device(request: pytest.FixtureRequest, cuda: FakeCuda) -> Device:
    return HostDevice() if request.param == "host" else CudaDevice()


def read(device: Device, buffer: object, shape: tuple[int, ...], dtype: object, offset: int = 0) -> np.ndarray:
    array = device.host_array(shape, dtype)
    device.download(buffer, array, offset)  # type: ignore[arg-type]
    device.wait()
    return np.array(array)


def test_memory_begins_as_zeros_and_keeps_what_is_copied(device: Device) -> None:
    buffer = device.allocate(48)
    assert buffer.nbytes == 48
    assert buffer.address
    assert read(device, buffer, (6,), np.int64).tolist() == [0] * 6
    array = np.arange(8, dtype=np.int32).reshape(2, 4)[:, ::2]
    device.upload(buffer, array, 8)
    array[:] = -1
    assert read(device, buffer, (2, 2), np.int32, 8).tolist() == [[0, 2], [4, 6]]
    assert read(device, buffer, (2,), np.int32).tolist() == [0, 0]
    device.free(buffer)


def test_pieces_are_copied_apart(device: Device) -> None:
    source, target = device.allocate(48), device.allocate(96)
    device.upload(source, np.arange(6, dtype=np.int64))
    device.upload(target, np.full(12, -1, np.int64))
    device.copy_pieces(source, target, 3, 16, (16, 32))
    expected = [0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1]
    assert read(device, target, (12,), np.int64).tolist() == expected


def test_what_is_recorded_is_done_again(device: Device, cuda: FakeCuda) -> None:
    done: list[int] = []
    recording = device.record(lambda: done.append(1))
    if isinstance(device, HostDevice):
        assert done == []
        recording.launch()
        recording.launch()
        assert done == [1, 1]
    else:
        assert done == [1]
        recording.launch()
        assert done == [1]
        assert cuda.calls[-1] == "cudaGraphLaunch"
        del recording
        assert cuda.alive == {"graph": 0, "executable": 0, "event": 0}


def test_time_between_moments(device: Device, cuda: FakeCuda) -> None:
    first, second = device.mark(), device.mark()
    second.wait()
    seconds = second.seconds_since(first)
    assert seconds == 0.0025 if isinstance(device, CudaDevice) else 0 <= seconds < 1
    del first, second
    assert cuda.alive["event"] == 0


def test_host() -> None:
    device = HostDevice()
    assert (device.ort_name, device.description, device.used_bytes()) == ("cpu", "cpu", None)
    assert device.free_bytes() > 1 << 20


def test_gpu(cuda: FakeCuda) -> None:
    device = CudaDevice()
    assert (device.ort_name, device.stream, device.compute_capability) == ("cuda", 77, "9.0")
    assert device.description == "cuda:0 Fake GPU"
    before = device.free_bytes()
    buffer = device.allocate(5000)
    assert device.used_bytes() == 5000
    assert device.free_bytes() == before - 5000
    device.free(buffer)
    device.free(buffer)
    assert cuda.memory == {}
    assert cuda.calls[-2:] == ["cudaStreamSynchronize", "cudaFree"]


def test_too_little_memory_is_one_sentence(cuda: FakeCuda) -> None:
    device = CudaDevice()
    with pytest.raises(EngineError, match=r"^3.00 GiB of GPU memory are needed and 0.00 GiB are free; use a shorter"):
        device.allocate(3 << 30)
    assert "cudaGetLastError" in cuda.calls
    assert device.allocate(100).address


def test_a_failing_call_is_named_in_cuda_s_words(cuda: FakeCuda) -> None:
    device = CudaDevice()
    cuda.fail["cudaStreamSynchronize"] = CAPTURE_INVALIDATED
    with pytest.raises(EngineError, match=r"^CUDA failed in cudaStreamSynchronize: capture invalidated$"):
        device.wait()
    assert cuda.calls[-1] == "cudaGetLastError"


def test_work_that_fails_ends_the_capture(cuda: FakeCuda) -> None:
    device = CudaDevice()

    def work() -> None:
        assert cuda.capturing
        raise KeyError("the work's own error")

    with pytest.raises(KeyError, match="the work's own"):
        device.record(work)
    assert not cuda.capturing
    assert cuda.alive["graph"] == 0
    assert gc.isenabled()
    device.record(lambda: None).launch()


@pytest.mark.parametrize("function", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_what_cannot_be_recorded_is_an_error(cuda: FakeCuda, function: str) -> None:
    device = CudaDevice()
    cuda.fail[function] = CAPTURE_INVALIDATED
    with pytest.raises(EngineError, match=f"CUDA failed in {function}: capture invalidated"):
        device.record(lambda: None)
    assert cuda.alive == {"graph": 0, "executable": 0, "event": 0}
    del cuda.fail[function]
    device.record(lambda: None).launch()


def test_a_failing_capture_keeps_the_work_s_error(cuda: FakeCuda) -> None:
    device = CudaDevice()
    cuda.fail["cudaStreamEndCapture"] = CAPTURE_INVALIDATED
    with pytest.raises(ValueError, match="first"):
        device.record(lambda: (_ for _ in ()).throw(ValueError("first")))


def test_nothing_is_collected_while_work_is_recorded(cuda: FakeCuda) -> None:
    """What a collection destroys may free memory, and CUDA forbids that in a capture."""
    device = CudaDevice()
    states = []
    device.record(lambda: states.append(gc.isenabled()))
    assert states == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        device.record(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pinned_memory_is_freed_with_its_last_view(cuda: FakeCuda) -> None:
    device = CudaDevice()
    array = device.host_array((3, 4), np.int64)
    assert array.shape == (3, 4)
    assert array.dtype == np.int64
    assert len(next(iter(cuda.pinned.values()))) == 96
    row, gone = array[1], weakref.ref(array)
    del array
    assert gone() is None or len(cuda.pinned) == 1
    row[:] = 5
    assert len(cuda.pinned) == 1
    cuda.calls.clear()
    del row
    gc.collect()
    assert cuda.pinned == {}
    assert cuda.calls == ["cudaStreamSynchronize", "cudaFreeHost"]


def test_pinned_memory_that_cannot_be_had(cuda: FakeCuda) -> None:
    device = CudaDevice()
    cuda.fail["cudaHostAlloc"] = OUT_OF_MEMORY
    with pytest.raises(EngineError, match="96 bytes of pinned host memory cannot be allocated"):
        device.host_array((3, 4), np.int64)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeCuda(devices=0))
    assert cuda_devices() == 0
    with pytest.raises(EngineError, match="there is no CUDA device 0 here; `llmc doctor`"):
        CudaDevice()
    failing = FakeCuda()
    failing.fail["cudaGetDeviceCount"] = 100
    install(monkeypatch, failing)
    assert cuda_devices() == 0
    install(monkeypatch, FakeCuda(devices=2))
    assert cuda_devices() == 2
    with pytest.raises(EngineError, match="no CUDA device 2"):
        CudaDevice(2)


def test_the_gpu_that_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(devices=3)
    install(monkeypatch, fake)
    assert CudaDevice(1).description == "cuda:1 Fake GPU"
    assert fake.device == 1


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert cuda_devices() == 0
    with pytest.raises(
        MissingDependencyError, match=r"cuda-bindings is not installed; pip install 'llmc-toolchain\["
    ):
        CudaDevice()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver(FakeCuda):
        def cudaGetDeviceCount(self) -> tuple[int, int]:  # noqa: N802
            raise RuntimeError("libcudart is not there")

    install(monkeypatch, NoDriver())
    assert cuda_devices() == 0
