import sys
import time
from types import ModuleType

import pytest

from llmc.runtimes.bench.gpu import EnergyCurve, Gpu, GpuLoad, GpuSampler, is_on_cuda, open_gpu, pci_bus_id
from llmc.runtimes.machine import describe_gpus


@pytest.fixture
def gpu(nvml):
    return Gpu(nvml, "handle")


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_device_answers_in_plain_units(gpu, nvml):
    nvml.millijoules, nvml.processes, nvml.utilization = 2500, {7: 300, 8: None}, 40
    assert gpu.energy_j() == 2.5
    assert gpu.power_w() == 300
    assert gpu.process_bytes() == {7: 300, 8: 0}
    assert gpu.load() == GpuLoad(utilization=0.4, used_bytes=1000, processes=2)


def test_what_a_device_refuses_is_none(gpu, nvml):
    nvml.millijoules = nvml.milliwatts = nvml.used = nvml.processes = nvml.utilization = None
    assert (gpu.energy_j(), gpu.power_w(), gpu.used_bytes(), gpu.process_bytes()) == (None, None, None, {})
    assert gpu.load() == GpuLoad(None, None, 0)


def test_without_package_or_driver_there_is_no_gpu(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu() is None
    assert describe_gpus() == ()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    nvml.driver = False
    assert open_gpu() is None
    assert describe_gpus() == ()


def test_nvmls_device_is_cudas_device(nvml, monkeypatch):
    driver = ModuleType("cuda.bindings.driver")
    driver.cuInit = lambda flags: (0,)
    driver.cuDeviceGet = lambda device: (0, f"device {device}")
    driver.cuDeviceGetPCIBusId = lambda size, device: (0, b"0000:3B:00.0\0\0\0")
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert open_gpu()._handle == "address 0000:3B:00.0"
    driver.cuInit = lambda flags: (100,)
    assert pci_bus_id() is None
    assert open_gpu()._handle == "index 0"


def test_machine_describes_its_gpus(nvml, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (found,) = describe_gpus()
    assert (found.name, found.memory_bytes, found.driver) == ("NVIDIA Fake", 80 << 30, "580.1")
    assert (found.sm_clock_mhz, found.memory_clock_mhz, found.power_limit_w) == (1980, 2619, 700)


def test_energy_between_two_moments_of_a_staircase():
    curve = EnergyCurve()
    for moment, joules in [(10.0, 0), (10.1, 30), (10.12, 30), (10.2, 60), (10.3, 90), (10.4, 120)]:
        curve.add_total(moment, joules)
    assert curve.times == [10.0, 10.1, 10.2, 10.3, 10.4]
    assert curve.between(10.05, 10.25) == pytest.approx(60)
    assert curve.between(9.9, 10.25) is None, "it began before the first reading"
    assert curve.between(10.05, 10.41) is None, "it ended after the last reading"
    assert curve.between(10.11, 10.19) is None, "no reading between"
    assert EnergyCurve().between(1, 2) is None


def test_energy_from_power():
    curve = EnergyCurve()
    curve.add_power(1.0, 100, None)
    curve.add_power(2.0, 300, (1.0, 100))
    curve.add_power(3.0, 300, (2.0, 300))
    assert curve.joules == [0, 200, 500]


def test_peak_of_the_followed_process(gpu, nvml):
    sampler = GpuSampler(gpu, period_s=0.001, tail_s=0)
    with sampler.watching():
        sampler.follow(7)
        nvml.processes = {7: 500, 8: 9000}
        wait_for(lambda: sampler.peak_bytes() == 500)
        nvml.processes, nvml.used = {7: 200}, 100_000
        wait_for(lambda: sampler._device_peak == 100_000)
        assert sampler.peak_bytes() == 500
    nvml.processes = {}
    with sampler.watching():
        assert sampler.peak_bytes() is None, "each watch starts anew"


def test_peak_of_a_process_that_nvml_hides(gpu, nvml):
    sampler = GpuSampler(gpu, period_s=0.001, tail_s=0)
    nvml.used = 4000
    with sampler.watching():
        sampler.follow(7)
        nvml.used = 9000
        wait_for(lambda: sampler.peak_bytes() is not None)
        nvml.used = 6000
    assert sampler.peak_bytes() == 5000


def test_energy_goes_on_over_watches_and_rests(gpu, nvml):
    sampler = GpuSampler(gpu, period_s=0.001, tail_s=0)
    for joules in (5, 8):
        nvml.millijoules = joules * 1000
        with sampler.watching():
            wait_for(lambda: sampler.energy.joules[-1:] == [joules])  # noqa: B023
    assert sampler.energy.joules == [5, 8]
    with sampler.watching():
        sampler.rest()
        asked = len(nvml.asked) + 2
        time.sleep(0.05)
        assert len(nvml.asked) <= asked


def test_a_device_without_a_counter_integrates_power(gpu, nvml):
    nvml.millijoules = None
    sampler = GpuSampler(gpu, period_s=0.001, tail_s=0)
    with sampler.watching():
        wait_for(lambda: len(sampler.energy.times) > 20)
    times = sampler.energy.times
    assert sampler.energy.between(times[2], times[12]) == pytest.approx(300 * (times[12] - times[2]))


def test_memory_is_asked_for_while_a_process_is_followed(gpu, nvml):
    sampler = GpuSampler(gpu, period_s=0.001, tail_s=0)
    with sampler.watching():
        wait_for(lambda: nvml.asked.count("energy") > 5)
        assert "processes" not in nvml.asked
        sampler.follow(7)
        wait_for(lambda: "processes" in nvml.asked)
        sampler.unfollow()
        nvml.used = 99_000
        time.sleep(0.02)
    assert sampler.peak_bytes() is None


def test_which_subjects_run_on_a_gpu():
    assert is_on_cuda({"details": {"device": "cuda:0"}})
    assert is_on_cuda({"details": {"device": "CUDA"}})
    assert not is_on_cuda({"details": {"device": "cpu"}})
    assert not is_on_cuda({"weight_bytes": 0})


@pytest.mark.gpu
def test_a_real_device():
    pytest.importorskip("pynvml")
    real = open_gpu()
    if real is None:
        pytest.skip("no NVIDIA driver")
    assert real.used_bytes() > 0
    assert real.energy_j() is not None or real.power_w() is not None
    assert describe_gpus()[0].memory_bytes > 1 << 30
