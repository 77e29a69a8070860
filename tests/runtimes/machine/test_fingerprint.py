import json
import subprocess
import sys

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.machine import bandwidth as bandwidth_module
from llmc.runtimes.machine import fingerprint as machine
from llmc.runtimes.machine import load as load_module
from llmc.runtimes.machine.bandwidth import measure_read_bandwidth
from llmc.runtimes.machine.load import LoadMeter, other_load

X86 = (
    "processor\t: 0\nmodel name\t: Some CPU\nflags\t: fpu avx2 avx512f avx512_vnni amx_int8\n\nmodel name\t: Other\n"
)
SERVER = (
    "processor\t: 0\nmodel name\t: Big CPU\nflags\t: avx avx2 avx512f avx512_bf16 avx_vnni amx_tile amx_bf16 "
    "amx_int8 avx512_vnni\n"
)
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_fingerprint_is_plain_json_and_plausible():
    fingerprint = machine.machine_fingerprint()
    again = json.loads(json.dumps(fingerprint.to_json()))
    assert 1 <= again["physical_cores"] <= again["logical_cpus"]
    assert again["memory_bytes"] > 1 << 28
    assert "numpy" in again["packages"]
    assert isinstance(again["gpus"], list)


def test_fingerprint_imports_no_runtime():
    code = (
        "import sys; from llmc.runtimes.machine.fingerprint import machine_fingerprint as f; f(); "
        "sys.exit(any(name in sys.modules for name in ('onnxruntime', 'torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "model", "isa"),
    [
        (X86, "Some CPU", ("avx2", "avx512f", "avx512_vnni", "amx_int8")),
        (ARM, None, ("neon", "dotprod", "i8mm", "bf16")),
        (SERVER, "Big CPU", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")),
        ("processor\t: 0\nflags\t: avx512_vnni\nModel\t: Board\n", "Board", ("avx512_vnni",)),
        ("Features\t: fp asimd sve\n", None, ("neon", "sve")),
    ],
)
def test_cpuinfo(tmp_path, text, model, isa):
    write(tmp_path / "cpuinfo", text)
    info = machine.read_cpuinfo(tmp_path / "cpuinfo")
    assert machine.isa_features(info) == isa
    assert model is None or machine.cpu_model(info) == model


def test_the_narrowest_memory_limit_of_a_group_and_its_parents_binds(tmp_path):
    write(tmp_path / "cgroup", "0::/a/b\n")
    for folder, cpus in (("a/b", 4), ("a", 3), ("", 6)):
        write(tmp_path / "root" / folder / "memory.max", f"{cpus}000\n")
    assert machine._cgroup_memory_limit(tmp_path / "root", tmp_path / "cgroup") == 3000
    write(tmp_path / "root" / "memory.max", "1500\n")
    assert machine._cgroup_memory_limit(tmp_path / "root", tmp_path / "cgroup") == 1500


def test_memory_limits_of_both_versions(tmp_path):
    assert machine._cgroup_memory_limit(tmp_path, tmp_path / "none") is None
    write(tmp_path / "cgroup", "4:memory:/job\n2:cpu:/other\n0::/x\n")
    write(tmp_path / "root" / "x" / "memory.max", "max\n")
    assert machine._cgroup_memory_limit(tmp_path / "root", tmp_path / "cgroup") is None
    write(tmp_path / "root" / "cpu" / "other" / "memory.limit_in_bytes", "5\n")
    write(tmp_path / "root" / "memory" / "job" / "memory.limit_in_bytes", "123456\n")
    assert machine._cgroup_memory_limit(tmp_path / "root", tmp_path / "cgroup") == 123456


def test_the_fingerprint_keeps_to_the_control_group_s_memory(monkeypatch):
    total = machine.machine_fingerprint().memory_bytes
    for limit, expected in ((total // 3, total // 3), (None, None), (1 << 60, None)):
        monkeypatch.setattr(machine, "_cgroup_memory_limit", lambda limit=limit: limit)
        assert machine.machine_fingerprint().memory_bytes == (expected or machine.psutil.virtual_memory().total)


def test_last_level_cache(tmp_path):
    for index, size in enumerate(["48K", "2048K", "30M"]):
        write(tmp_path / "cpu0" / "cache" / f"index{index}" / "size", size + "\n")
    assert machine.last_level_cache_bytes(0, tmp_path) == 30 << 20
    assert machine.last_level_cache_bytes(5, tmp_path) == 0
    write(tmp_path / "cpu1" / "cache" / "index0" / "size", "512K\n")
    assert machine.last_level_cache_bytes(1, tmp_path) == 512 << 10


LINE = "NVIDIA H100 80GB HBM3, 9.0, 81559, 80000, 580.1, 1980, 2619, 700.00"


def test_nvidia_smi_answers():
    """A name may hold commas, a number may be withheld, and a line may be none of a GPU."""
    whole, part = machine.parse_nvidia_smi(f"{LINE}\nbroken\nName, with comma, 8.9, 1024, [N/A], 1, [N/A], x, 0\n")
    assert whole == machine.GpuDescription("NVIDIA H100 80GB HBM3", 81559 << 20, "580.1", 1980, 2619, 700, "9.0")
    assert whole.free_bytes == 80000 << 20
    assert part == machine.GpuDescription("Name, with comma", 1 << 30, "1", compute_capability="8.9")
    assert part.free_bytes is None


def test_nvidia_smi_is_asked_for_what_is_parsed(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    query = "--query-gpu=" + ",".join(machine.GPU_FIELDS)
    write(program, f'#!/bin/sh\ntest "$1" = {query} && echo "{LINE}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(program))
    fingerprint = machine.machine_fingerprint()
    assert fingerprint.gpus == machine.describe_gpus() == machine.parse_nvidia_smi(LINE)
    assert [gpu.free_bytes for gpu in fingerprint.gpus] == [80000 << 20]
    (gpu,) = fingerprint.to_json()["gpus"]
    assert set(gpu) == {"name", "memory_bytes", "driver", "sm_clock_mhz", "memory_clock_mhz", "power_limit_w"}


def test_a_failing_nvidia_smi_means_no_gpu(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    write(program, "#!/bin/sh\necho driver mismatch; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(program))
    assert machine.describe_gpus() == ()
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.describe_gpus() == ()


def test_load_is_what_is_busy_and_not_ours(monkeypatch):
    samples = iter([(0.0, 10.0, 1.0), (2.0, 13.0, 2.5)])
    monkeypatch.setattr(load_module, "usable_cpus", lambda: frozenset({0, 1}))
    meter = LoadMeter()
    monkeypatch.setattr(meter, "_sample", lambda: next(samples))
    meter.start()
    assert meter.stop() == pytest.approx((3.0 - 1.5) / (2.0 * 2))


def test_own_children_are_not_other_load(monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"])
    before = load_module._own_cpu_seconds()
    child.wait()  # its time must not be lost when it ends
    assert load_module._own_cpu_seconds() - before > 0.1


def test_load_meter_needs_a_start():
    with pytest.raises(RuntimeError):
        LoadMeter().stop()


def test_other_load_is_a_share():
    assert 0.0 <= other_load(0.1) <= 1.0


def test_bandwidth_is_bytes_over_time_without_the_first_pass(monkeypatch):
    seconds = iter([100.0, 0.5, 0.25, 0.5])
    monkeypatch.setattr(
        bandwidth_module, "timed_passes", lambda work, passes, **_: [next(seconds) for _ in range(passes + 1)][1:]
    )
    measured = measure_read_bandwidth(2, buffer_bytes=1 << 20, passes=3)
    assert measured.buffer_bytes == 1 << 20
    assert measured.bytes_per_second.median == (1 << 20) / 0.5
    assert measured.bytes_per_second.maximum == (1 << 20) / 0.25


def test_bandwidth_of_this_machine_is_plausible():
    measured = measure_read_bandwidth(1, buffer_bytes=64 << 20, passes=3)
    assert 1e8 < measured.bytes_per_second.median < 2e12
    assert json.loads(json.dumps(measured.to_json()))["threads"] == 1


@pytest.mark.parametrize(
    "arguments", [{"threads": 0}, {"threads": 1, "passes": 0}, {"threads": 4, "buffer_bytes": 8}]
)
def test_bandwidth_refuses_nothing(arguments):
    with pytest.raises(UsageError):
        measure_read_bandwidth(**{"buffer_bytes": 1 << 20, **arguments})
