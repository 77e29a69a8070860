"""The machine that a measurement was made on.

In: ``/proc``, ``/sys``, the installed packages' metadata, ``nvidia-smi`` where it is (nothing heavy is imported).
Out: :class:`MachineFingerprint`, which goes into every benchmark file so that two files can be compared.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from llmc.compiler.base.json_record import LEFT_OUT, encode
from llmc.compiler.base.processors import (
    CGROUP_ROOT,
    CPU_DEVICES,
    PROCESS_CGROUPS,
    cgroup_directories,
    physical_cores,
    read_lines,
    read_words,
    usable_cpus,
)

CPUINFO = Path("/proc/cpuinfo")

# Instruction sets that LLM kernels choose their code path by: the kernel's flag -> the name that is reported.
X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
ARM_FLAGS = {"asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve"}
ISA_FLAGS: Mapping[str, str] = {flag: flag for flag in X86_FLAGS} | ARM_FLAGS
GPU_FIELDS = (
    *("name", "compute_cap", "memory.total", "memory.free", "driver_version", "clocks.max.sm", "clocks.max.memory"),
    "power.limit",
)
"""What ``nvidia-smi`` is asked of each GPU."""
MEASURED_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "llmc-toolchain")


@dataclass(frozen=True)
class GpuDescription:
    """An NVIDIA GPU as ``nvidia-smi`` describes it; of the numbers, what it does not answer is 0.

    A fingerprint leaves out the capability, which the name decides, and what is free, which the moment does.

    Attributes:
        sm_clock_mhz, memory_clock_mhz: Highest clocks of the multiprocessors and of the memory.
        power_limit_w: Watts that it may draw.
        compute_capability: As ``9.0``.
        free_bytes: What is free now, no part of what the GPU is; None where it does not say.
    """

    name: str
    memory_bytes: int
    driver: str = ""
    sm_clock_mhz: int = 0
    memory_clock_mhz: int = 0
    power_limit_w: int = 0
    compute_capability: str = field(default="", metadata=LEFT_OUT)
    free_bytes: int | None = field(default=None, compare=False, metadata=LEFT_OUT)


@dataclass(frozen=True)
class MachineFingerprint:
    """What decides how fast an engine can be here.

    Attributes:
        cpu_model: The processor's own name; a virtual machine may hide it.
        physical_cores: Cores that this process may use: its affinity mask, one per group of hardware threads, and
            no more than the control group's quota.
        logical_cpus: Hardware threads in the affinity mask.
        isa: Instruction-set extensions that matter here, in the order of :data:`ISA_FLAGS`.
        last_level_cache_bytes: Largest cache that one core sees; 0 when unknown. A virtual machine may name its
            host's cache, of which it gets a part.
        memory_bytes: Physical memory, or the control group's limit where that is less.
        operating_system: Kernel's name and release.
        architecture: As ``x86_64`` or ``aarch64``.
        python: Interpreter's version.
        packages: Distribution name -> version, of those installed.
        gpus: NVIDIA's, in the driver's order; empty without ``nvidia-smi``.
    """

    cpu_model: str
    physical_cores: int
    logical_cpus: int
    isa: tuple[str, ...]
    last_level_cache_bytes: int
    memory_bytes: int
    operating_system: str
    architecture: str
    python: str
    packages: Mapping[str, str]
    gpus: tuple[GpuDescription, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return encode(self)


def machine_fingerprint() -> MachineFingerprint:
    """Describe this machine as this process sees it (affinity and control group respected)."""
    cpus = usable_cpus()
    info = read_cpuinfo()
    return MachineFingerprint(
        cpu_model=cpu_model(info),
        physical_cores=physical_cores(cpus),
        logical_cpus=len(cpus),
        isa=isa_features(info),
        last_level_cache_bytes=last_level_cache_bytes(min(cpus)),
        memory_bytes=min(psutil.virtual_memory().total, _cgroup_memory_limit() or sys.maxsize),
        operating_system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        python=platform.python_version(),
        packages=installed_versions(MEASURED_PACKAGES),
        gpus=describe_gpus(),
    )


def describe_gpus() -> tuple[GpuDescription, ...]:
    """GPUs that ``nvidia-smi`` lists; none when it is missing, fails, or takes over 10 seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_nvidia_smi(answer)


def parse_nvidia_smi(answer: str) -> tuple[GpuDescription, ...]:
    """GPUs from lines of :data:`GPU_FIELDS`, memory in MiB; a line of another form is skipped."""
    gpus = []
    for line in answer.splitlines():
        name, *rest = (part.strip() for part in line.rsplit(",", len(GPU_FIELDS) - 1))
        if len(rest) == len(GPU_FIELDS) - 1 and rest[1].isdigit():
            capability, memory, free, driver, *limits = rest
            cores, buses, watts = (int(float(text)) if text.replace(".", "", 1).isdigit() else 0 for text in limits)
            left = int(free) << 20 if free.isdigit() else None
            gpus.append(GpuDescription(name, int(memory) << 20, driver, cores, buses, watts, capability, left))
    return tuple(gpus)


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions that are installed, read from their metadata without an import."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _cgroup_memory_limit(root: Path = CGROUP_ROOT, membership: Path = PROCESS_CGROUPS) -> int | None:
    names = ("memory.max", "memory.limit_in_bytes")
    groups = cgroup_directories("memory", root, membership)
    limits = [read_words(directory / name) for directory in groups for name in names]
    return min((int(words[0]) for words in limits if words and words[0] != "max"), default=None)


def last_level_cache_bytes(cpu: int = 0, devices: Path = CPU_DEVICES) -> int:
    """Size of the largest cache that ``cpu`` sees, in bytes; 0 when the kernel does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for entry in (devices / f"cpu{cpu}" / "cache").glob("index*/size"):
        text = "".join(read_words(entry))
        if text and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes)


def read_cpuinfo(path: Path = CPUINFO) -> dict[str, str]:
    """Fields of the first processor in ``/proc/cpuinfo``; empty on systems without it."""
    fields: dict[str, str] = {}
    for line in read_lines(path):
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    return fields


def cpu_model(info: Mapping[str, str]) -> str:
    """The processor's name from :func:`read_cpuinfo`, else what Python knows."""
    return info.get("model name") or info.get("Model") or platform.processor() or platform.machine() or "unknown"


def cpu_flags(info: Mapping[str, str]) -> frozenset[str]:
    """The kernel's names of what the processor can do (``flags`` on x86, ``Features`` on ARM)."""
    return frozenset((info.get("flags", "") + " " + info.get("Features", "")).split())


def isa_features(info: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the :data:`ISA_FLAGS` that :func:`read_cpuinfo` reports."""
    flags = cpu_flags(info)
    return tuple(name for flag, name in ISA_FLAGS.items() if flag in flags)
