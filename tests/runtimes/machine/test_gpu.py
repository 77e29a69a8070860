import sys
import time
from types import ModuleType, SimpleNamespace

import pytest

from llmc.runtimes.machine import gpu as gpu_module
from llmc.runtimes.machine.fingerprint import describe_gpus
from llmc.runtimes.machine.gpu import EnergyCurve, Gpu, GpuLoad, GpuSampler, is_on_cuda, open_gpu, pci_bus_id


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
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    nvml.driver = False
    assert open_gpu() is None


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


def test_a_window_needs_two_readings_and_may_end_at_one():
    curve = EnergyCurve()
    for moment, joules in [(10.0, 5.0), (11.0, 7.0), (12.0, 10.0), (13.0, 20.0)]:
        curve.add_total(moment, joules)
    assert curve.joules == [5.0, 7.0, 10.0, 20.0]
    assert curve.between(10.0, 11.0) == 2.0, "from the first reading to the second"
    assert curve.between(12.0, 13.0) == 10.0, "to the last reading"
    assert curve.between(10.5, 12.5) == 9.0
    assert curve.between(10.5, 11.9) is None, "one reading between"
    assert curve.between(9.999, 13.0) is None
    assert curve.between(10.0, 13.001) is None


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


@pytest.fixture
def by_hand(monkeypatch):
    """No thread runs: samples are taken by calls. What a watch did, in order; the time is what the test sets."""
    made = SimpleNamespace(told=[], now=0.0, takes=0.0)

    def moment():
        made.now += made.takes
        return made.now

    def thread(**options):
        return SimpleNamespace(start=lambda: made.told.append("start"), join=lambda: made.told.append("join"))

    def event():
        return SimpleNamespace(set=lambda: made.told.append("stop"), wait=lambda period: True)

    clock = SimpleNamespace(time=moment, sleep=lambda seconds: made.told.append(f"sleep {seconds}"))
    monkeypatch.setattr(gpu_module, "time", clock)
    monkeypatch.setattr(gpu_module, "threading", SimpleNamespace(Event=event, Thread=thread))
    return made


def test_a_watch_lasts_until_the_last_window_has_a_reading_after_its_end(gpu, by_hand):
    sampler = GpuSampler(gpu, tail_s=0.25)
    with sampler.watching():
        by_hand.told.append("body")
    assert by_hand.told == ["start", "body", "sleep 0.25", "stop", "join"]
    by_hand.told.clear()
    with sampler.watching():
        sampler.rest()
    assert by_hand.told == ["start", "stop", "join"]
    by_hand.told.clear()
    with pytest.raises(KeyboardInterrupt), sampler.watching():
        raise KeyboardInterrupt
    assert by_hand.told == ["start", "stop", "join"]


def test_a_reading_counts_for_the_middle_of_the_question(gpu, nvml, by_hand):
    sampler = GpuSampler(gpu)
    nvml.millijoules, by_hand.now, by_hand.takes = 1500, 10.0, 0.5
    sampler._sample_energy()
    assert (sampler.energy.times, sampler.energy.joules) == ([10.75], [1.5])


def test_power_is_not_integrated_over_the_pause_between_two_watches(gpu, nvml, by_hand):
    nvml.millijoules = None
    sampler = GpuSampler(gpu)
    for moments, watts in (((1.0, 2.0), 100), ((10.0, 12.0), 50)):
        nvml.milliwatts = watts * 1000
        with sampler.watching():
            for by_hand.now in moments:
                sampler._sample_energy()
    assert sampler.energy.times == [1.0, 2.0, 10.0, 12.0]
    assert sampler.energy.joules == [0.0, 100.0, 100.0, 200.0]


def test_a_question_without_an_answer_is_no_reading(gpu, nvml, by_hand):
    sampler = GpuSampler(gpu)
    nvml.millijoules = None
    sampler._sample_energy()
    assert sampler.energy.times == []


def test_a_watch_starts_anew_in_everything(gpu, nvml, by_hand):
    """Neither the process that was followed, nor its peak, nor what the device had, nor a rest goes on."""
    sampler = GpuSampler(gpu)
    with sampler.watching():
        sampler.follow(7)
        nvml.processes, nvml.used = {7: 500, 8: 9000}, 2000
        sampler._sample_memory(7)
        nvml.processes = {7: 300}
        sampler._sample_memory(7)
        assert sampler.peak_bytes() == 500
        sampler.rest()
    nvml.processes = {7: 700}
    with sampler.watching():
        assert sampler.peak_bytes() is None
        sampler._loop(SimpleNamespace(wait=lambda period: True))
        assert (sampler.peak_bytes(), len(sampler.energy.times)) == (None, 1), "it asks again, and follows nobody"
        nvml.processes, nvml.used = {}, 2600
        sampler._sample_memory(9)
        nvml.used = 2400
        sampler._sample_memory(9)
        assert sampler.peak_bytes() == 600


def test_which_subjects_run_on_a_gpu():
    assert is_on_cuda({"details": {"device": "cuda:0"}})
    assert is_on_cuda({"details": {"device": "CUDA"}})
    assert is_on_cuda({"details": {"device": "cuda"}})
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
