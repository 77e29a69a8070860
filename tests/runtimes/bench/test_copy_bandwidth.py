import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from llmc.compiler.errors import EngineError, MissingDependencyError, UsageError
from llmc.runtimes.bench import copy_bandwidth
from llmc.runtimes.bench.copy_bandwidth import CopyBandwidth, copy_bandwidth_of_device, measure_copy_bandwidth
from llmc.runtimes.bench.summary import Summary


class Runtime(ModuleType):
    """cuda.bindings.runtime with a device that copies 1 byte a nanosecond, its first pass half as fast."""

    cudaDeviceAttr = SimpleNamespace(cudaDevAttrL2CacheSize=38)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDeviceToDevice=3)  # noqa: N815

    def __init__(self):
        super().__init__("cuda.bindings.runtime")
        self.now, self.events, self.allocated, self.free = 0.0, [], {}, 8 << 30
        self.copied, self.refuse = [], False

    def cudaMemGetInfo(self):  # noqa: N802
        return (35, None, None) if self.refuse else (0, self.free, 16 << 30)

    def cudaGetErrorString(self, status):  # noqa: N802
        return 0, b"insufficient driver"

    def cudaDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return 0, 50 << 20

    def cudaMalloc(self, size):  # noqa: N802
        if size > self.free:
            return 2, None
        pointer = 4096 * (1 + len(self.allocated))
        self.allocated[pointer] = size
        return 0, pointer

    def cudaMemset(self, pointer, value, size):  # noqa: N802
        assert self.allocated[pointer] == size
        return (0,)

    def cudaFree(self, pointer):  # noqa: N802
        self.allocated[pointer] = 0
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        assert target != source
        assert kind == 3
        slow = 2 if len(self.copied) < 10 else 1
        self.copied.append(size)
        self.now += slow * size / 1e9
        return (0,)

    def cudaEventCreate(self):  # noqa: N802
        self.events.append(None)
        return 0, len(self.events) - 1

    def cudaEventRecord(self, event, stream):  # noqa: N802
        self.events[event] = self.now
        return (0,)

    def cudaEventSynchronize(self, event):  # noqa: N802
        return (0,)

    def cudaEventElapsedTime(self, begin, end):  # noqa: N802
        return 0, (self.events[end] - self.events[begin]) * 1e3

    def cudaEventDestroy(self, event):  # noqa: N802
        return (0,)


@pytest.fixture
def runtime(monkeypatch):
    fake = Runtime()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


def test_bytes_read_and_written_count_and_the_first_pass_does_not(runtime):
    found = measure_copy_bandwidth(passes=3)
    assert found.bytes_per_second.median == pytest.approx(2e9)
    assert found.bytes_per_second.minimum == pytest.approx(2e9)
    assert found.bytes_per_second.count == 3
    assert found.buffer_bytes == 1 << 30
    assert found.cache_bytes == 50 << 20
    assert runtime.copied == [1 << 30] * 40
    assert set(runtime.allocated.values()) == {0}, "both buffers are freed"


def test_the_buffer_leaves_room(runtime):
    runtime.free = 1 << 30
    assert measure_copy_bandwidth(passes=1).buffer_bytes == 1 << 28


def test_what_cuda_refuses_is_said(runtime):
    with pytest.raises(EngineError, match="insufficient driver"):
        measure_copy_bandwidth(buffer_bytes=9 << 30)
    runtime.refuse = True
    with pytest.raises(EngineError, match="insufficient driver"):
        measure_copy_bandwidth()


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match="cuda-python"):
        measure_copy_bandwidth()
    assert copy_bandwidth.main() == MissingDependencyError.exit_code
    assert "cuda-python" in capsys.readouterr().err


def test_the_program_prints_what_the_benchmark_reads(runtime, capsys):
    assert copy_bandwidth.main() == 0
    found = CopyBandwidth.from_json(json.loads(capsys.readouterr().out))
    assert found.bytes_per_second.median == pytest.approx(2e9)
    assert (found.bytes_per_second.count, found.buffer_bytes) == (7, 1 << 30)


def test_a_process_of_its_own(monkeypatch, caplog):
    value = CopyBandwidth(Summary(3e12, 2e12, 4e12, 7), 1 << 30, 50 << 20)
    code = f"print({json.dumps(json.dumps(value.to_json()))})"
    monkeypatch.setattr(copy_bandwidth, "COMMAND", (sys.executable, "-c", code))
    assert copy_bandwidth_of_device() == value
    code = "import sys; print('a traceback', file=sys.stderr); sys.exit('no device')"
    monkeypatch.setattr(copy_bandwidth, "COMMAND", (sys.executable, "-c", code))
    assert copy_bandwidth_of_device() is None
    assert "was not measured: no device" in caplog.text


def test_no_passes(runtime):
    with pytest.raises(UsageError):
        measure_copy_bandwidth(passes=0)


@pytest.mark.gpu
def test_a_real_device():
    pytest.importorskip("cuda.bindings.runtime")
    try:
        found = measure_copy_bandwidth(passes=3)
    except EngineError as error:
        pytest.skip(str(error))
    assert found.bytes_per_second.minimum > 50e9
    assert found.buffer_bytes > 2 * found.cache_bytes
