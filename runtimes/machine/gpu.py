"""The GPU seen from outside: memory, energy, other users, through NVML.

In: a machine with the package ``nvidia-ml-py`` and NVIDIA's driver. Out: :func:`open_gpu`, and :class:`GpuSampler`,
which watches the device while workers run. Without package or driver there is no GPU, and without an answer to one
question that figure is None: nothing here fails because of it.

All subjects use CUDA's device 0, so this is the one that is watched.

Energy comes from the device's own counter (``nvmlDeviceGetTotalEnergyConsumption``) where it has one: the power that
NVML reports is an average over a second on recent devices, too slow for a decode of 200 ms. It is the whole device's,
idle power included.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
SAMPLE_S = 0.02
# The energy counter moves every 20 to 100 ms: the last window needs a reading from after its end.
TAIL_S = 0.25
LEAST_READINGS = 2


@dataclass(frozen=True)
class GpuLoad:
    """Who uses the device while the benchmark does not.

    Attributes:
        utilization: Share of the last sample period, 0 to 1, in which a kernel ran; None when unknown.
        used_bytes: Memory in use; None when unknown.
        processes: Processes with a compute context that NVML shows; in a container it may show none.
    """

    utilization: float | None
    used_bytes: int | None
    processes: int


class Gpu:
    """One device, asked through NVML; what it does not answer is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def _ask(self, question: Callable[[Any, Any], T]) -> T | None:
        try:
            return question(self._nvml, self._handle)
        except self._nvml.NVMLError:
            return None

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded."""
        return self._ask(lambda nvml, handle: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3)

    def power_w(self) -> float | None:
        """Watts, as NVML averages them."""
        return self._ask(lambda nvml, handle: float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3)

    def used_bytes(self) -> int | None:
        """Memory in use on the device, by everyone."""
        return self._ask(lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).used))

    def process_bytes(self) -> dict[int, int]:
        """Memory of each process that NVML shows, by its id, contexts included; 0 when it hides the number."""
        found = self._ask(lambda nvml, handle: list(nvml.nvmlDeviceGetComputeRunningProcesses(handle)))
        return {int(process.pid): int(process.usedGpuMemory or 0) for process in found or ()}

    def load(self) -> GpuLoad:
        """The device as it is now."""
        busy = self._ask(lambda nvml, handle: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100)
        return GpuLoad(busy, self.used_bytes(), len(self.process_bytes()))


def open_gpu() -> Gpu | None:
    """CUDA's device 0, or None where NVML cannot be asked."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        address = pci_bus_id()
        handle = (
            nvml.nvmlDeviceGetHandleByIndex(0) if address is None else nvml.nvmlDeviceGetHandleByPciBusId(address)
        )
    except nvml.NVMLError:
        return None
    return Gpu(nvml, handle)


def pci_bus_id(device: int = 0) -> str | None:
    """PCI address of a CUDA device: CUDA's order of devices, and what it may see, is not NVML's.

    No context is made. None without the package ``cuda-python`` or a driver.
    """
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        _cuda(driver.cuInit(0))
        address = bytes(_cuda(driver.cuDeviceGetPCIBusId(32, _cuda(driver.cuDeviceGet(device)))))
    except (ImportError, RuntimeError):
        return None
    return address.split(b"\0")[0].decode()


def _cuda(answer: tuple[Any, ...]) -> Any:
    """The value of a call of ``cuda.bindings``, which answers (status, value).

    Raises:
        RuntimeError: the status says that it failed.
    """
    status, *values = answer
    if int(status):
        raise RuntimeError(str(status))
    return values[0] if values else None


def is_on_cuda(info: Any) -> bool:
    """Whether a subject runs on a GPU, by its info: ``details["device"]`` is ``cuda``, ``cuda:0`` or ``CUDA``."""
    return str(info.get("details", {}).get("device", "")).lower().startswith("cuda")


@dataclass
class EnergyCurve:
    """Joules over wall-clock time, as a line through the readings at which the counter moved.

    A counter that moves every 100 ms is a staircase: between two of its moves the truth is nearer to the line.

    Attributes:
        times: Seconds of ``time.time()``, rising.
        joules: Joules since some moment, rising.
    """

    times: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def add_total(self, moment: float, joules: float) -> None:
        """A reading of a counter; one that has not moved since the last adds nothing."""
        if not self.joules or joules > self.joules[-1]:
            self.times.append(moment)
            self.joules.append(joules)

    def add_power(self, moment: float, watts: float, last: tuple[float, float] | None) -> None:
        """A reading of power: the energy since the reading before, ``last`` = (moment, watts), by the trapezoid."""
        total = self.joules[-1] if self.joules else 0.0
        if last is not None:
            total += (moment - last[0]) * (watts + last[1]) / 2
        self.times.append(moment)
        self.joules.append(total)

    def between(self, begin: float, end: float) -> float | None:
        """Joules between two moments; None where they lie outside the readings, or too few readings between them."""
        inside = bisect_right(self.times, end) - bisect_left(self.times, begin)
        if inside < LEAST_READINGS or begin < self.times[0] or end > self.times[-1]:
            return None
        low, high = np.interp((begin, end), self.times, self.joules)
        return float(high - low)


class GpuSampler:
    """Watches the device in a thread, every 20 ms, inside ``with sampler.watching():``, as often as wanted.

    Attributes:
        energy: Readings of all watches so far.
    """

    def __init__(self, gpu: Gpu, *, period_s: float = SAMPLE_S, tail_s: float = TAIL_S) -> None:
        self.energy = EnergyCurve()
        self._gpu, self._period_s, self._tail_s = gpu, period_s, tail_s
        self._has_counter = gpu.energy_j() is not None
        self._baseline = self._device_peak = self._process_peak = 0
        self._pid: int | None = None
        self._resting = False
        self._last: tuple[float, float] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Sample until the block ends; begin before the process that :meth:`follow` will name uses the device."""
        self._baseline = self._device_peak = self._gpu.used_bytes() or 0
        self._process_peak, self._pid, self._last, self._resting = 0, None, None, False
        stop = threading.Event()
        thread = threading.Thread(target=self._loop, args=(stop,), name="gpu-sampler", daemon=True)
        thread.start()
        try:
            yield
            if not self._resting:
                time.sleep(self._tail_s)
        finally:
            stop.set()
            thread.join()

    def follow(self, pid: int) -> None:
        """Watch the memory, of this process where NVML shows it."""
        self._pid = pid

    def unfollow(self) -> None:
        """Leave the memory alone for the rest of this watch: asking takes time while something is timed."""
        self._pid = None

    def rest(self) -> None:
        """Ask nothing more in this watch: the subject does not use the device."""
        self._resting = True

    def peak_bytes(self) -> int | None:
        """Most memory that the followed process held in this watch; None when the device does not say.

        Where NVML does not show the process (a container hides it), what the device had in use beyond the start.
        """
        return self._process_peak or (self._device_peak - self._baseline) or None

    def _loop(self, stop: threading.Event) -> None:
        while not self._resting:
            self._sample_memory(self._pid)
            self._sample_energy()
            if stop.wait(self._period_s):
                return

    def _sample_memory(self, pid: int | None) -> None:
        if pid is not None:
            self._device_peak = max(self._device_peak, self._gpu.used_bytes() or 0)
            self._process_peak = max(self._process_peak, self._gpu.process_bytes().get(pid, 0))

    def _sample_energy(self) -> None:
        begin = time.time()
        value = self._gpu.energy_j() if self._has_counter else self._gpu.power_w()
        moment = (begin + time.time()) / 2
        if value is None:
            return
        if self._has_counter:
            self.energy.add_total(moment, value)
        else:
            self.energy.add_power(moment, value, self._last)
            self._last = (moment, value)
