"""A stand-in for pynvml: one device whose counters the test sets; a question set to None is refused."""

from types import SimpleNamespace


class NVMLError(Exception):
    pass


class FakeNvml:
    NVMLError = NVMLError

    def __init__(self):
        self.millijoules = 0
        self.milliwatts = 300_000
        self.used = 1000
        self.processes = {}
        self.utilization = 0
        self.driver = True
        self.asked = []

    def _answer(self, value):
        if value is None:
            raise NVMLError("not supported")
        return value

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return f"index {index}"

    def nvmlDeviceGetHandleByPciBusId(self, address):  # noqa: N802
        return f"address {address}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        self.asked.append("energy")
        return self._answer(self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._answer(self.milliwatts)

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=self._answer(self.used), total=80 << 30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        self.asked.append("processes")
        held = self._answer(self.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in held.items()]

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=self._answer(self.utilization))
