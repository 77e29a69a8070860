import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError, UsageError
from llmc.runtimes.machine import copy_bandwidth, own_process
from llmc.runtimes.machine.copy_bandwidth import CopyBandwidth, copy_bandwidth_of_device, measure_copy_bandwidth
from llmc.runtimes.machine.summary import Summary


class Runtime(ModuleType):
    """cuda.bindings.runtime with a device that copies 1 byte a nanosecond, its first pass half as fast."""

    cudaDeviceAttr = SimpleNamespace(cudaDevAttrL2CacheSize=38)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDeviceToDevice=3)  # noqa: N815

    def __init__(self):
        super().__init__("cuda.bindings.runtime")
        self.now, self.events, self.allocated, self.free = 0.0, [], {}, 8 << 30
        self.copied, self.refuse, self.cache = [], False, 50 << 20
        self.written, self.waited, self.destroyed = set(), set(), set()

    def cudaMemGetInfo(self):  # noqa: N802
        return (35, None, None) if self.refuse else (0, self.free, 16 << 30)

    def cudaGetErrorString(self, status):  # noqa: N802
        return 0, b"insufficient driver"

    def cudaDeviceGetAttribute(self, attribute, device):  # noqa: N802
        return 0, self.cache

    def cudaMalloc(self, size):  # noqa: N802
        if size > self.free:
            return 2, None
        pointer = 4096 * (1 + len(self.allocated))
        self.allocated[pointer] = size
        return 0, pointer

    def cudaMemset(self, pointer, value, size):  # noqa: N802
        assert self.allocated[pointer] == size
        assert value != 0
        self.written.add(pointer)
        return (0,)

    def cudaFree(self, pointer):  # noqa: N802
        self.allocated[pointer] = 0
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        assert target != source
        assert kind == 3
        assert {source, target} <= self.written
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
        self.waited.add(event)
        return (0,)

    def cudaEventElapsedTime(self, begin, end):  # noqa: N802
        assert end in self.waited
        return 0, (self.events[end] - self.events[begin]) * 1e3

    def cudaEventDestroy(self, event):  # noqa: N802
        self.destroyed.add(event)
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
    assert runtime.destroyed == set(range(8))


def test_the_buffer_is_eight_times_a_large_cache(runtime):
    runtime.cache, runtime.free = 256 << 20, 64 << 30
    assert measure_copy_bandwidth(passes=1).buffer_bytes == 2 << 30


def test_a_buffer_that_is_asked_for_is_taken_as_it_is(runtime):
    assert measure_copy_bandwidth(buffer_bytes=3 << 30, passes=1).buffer_bytes == 3 << 30
    assert runtime.copied == [3 << 30] * 20


def test_what_was_allocated_is_freed_when_the_second_buffer_is_refused(runtime):
    runtime.cudaMalloc = lambda size, malloc=runtime.cudaMalloc: (2, None) if runtime.allocated else malloc(size)
    with pytest.raises(EngineError, match="insufficient driver"):
        measure_copy_bandwidth(passes=1)
    assert list(runtime.allocated.values()) == [0]


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
    monkeypatch.setattr(copy_bandwidth, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    assert copy_bandwidth_of_device() is None
    assert "was not measured: no message" in caplog.text
    monkeypatch.setattr(copy_bandwidth, "COMMAND", ("/no/such/python",))
    assert copy_bandwidth_of_device() is None
    assert "No such file" in caplog.text


def test_a_process_that_hangs_is_given_up(monkeypatch, caplog):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(own_process, "subprocess", SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))
    assert copy_bandwidth_of_device() is None
    assert "timed out after 120" in caplog.text


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
