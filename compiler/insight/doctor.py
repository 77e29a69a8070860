"""What this machine and this environment can do, and what each target still needs.

In: installed packages' metadata, ONNX Runtime's provider list, ``nvidia-smi`` where there is one.
Out: :class:`DoctorReport`. Nothing here fails because something is missing: that is what the report is for.

A target may be able to build and unable to run: TensorRT-RTX's builder, for one, needs no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmc.compiler.base.targets import TARGETS, Requirement, Target, is_importable
from llmc.compiler.base.versions import DISTRIBUTION
from llmc.runtimes.machine.fingerprint import (
    GpuDescription,
    MachineFingerprint,
    installed_versions,
    machine_fingerprint,
)

REPORTED_PACKAGES = (
    DISTRIBUTION,
    *("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "numpy", "safetensors", "tokenizers", "gguf"),
    *(package for row in TARGETS for package in row.requirement.packages),
)
GPU_FIELDS = ("name", "compute_capability", "memory_bytes", "free_bytes")
"""Of a GPU, what the report says."""
INT8_DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"})


@dataclass(frozen=True)
class TargetStatus:
    """What a target can do here.

    Attributes:
        target: Name as ``--target`` takes it.
        can_build: Engines can be made here.
        can_run: Engines can be run here.
        needs: What is missing, one sentence each, with what to do about it; empty when it can run.
    """

    target: str
    can_build: bool
    can_run: bool
    needs: tuple[str, ...]


@dataclass(frozen=True)
class DoctorReport:
    """Everything ``llmc doctor`` shows.

    Attributes:
        machine: CPU, memory, system, Python.
        packages: Distribution -> version, of those installed.
        execution_providers: ONNX Runtime's, best first; empty when it is not installed or does not load.
        gpus: NVIDIA GPUs.
        targets: One entry per target.
        notes: What else is worth knowing, one sentence each.
    """

    machine: MachineFingerprint
    packages: Mapping[str, str]
    execution_providers: tuple[str, ...]
    gpus: tuple[GpuDescription, ...]
    targets: tuple[TargetStatus, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {
            "schema_version": 1,
            "machine": self.machine.to_json(),
            "packages": dict(self.packages),
            "execution_providers": list(self.execution_providers),
            "gpus": [{name: getattr(gpu, name) for name in GPU_FIELDS} for gpu in self.gpus],
            "targets": [{**asdict(target), "needs": list(target.needs)} for target in self.targets],
            "notes": list(self.notes),
        }


def examine() -> DoctorReport:
    """Look at this machine and environment."""
    machine = machine_fingerprint()
    packages = installed_versions(REPORTED_PACKAGES)
    providers, failure = execution_providers()
    notes = [failure] if failure else []
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        notes.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "uninstall both, then install the one you need"
        )
    if not INT8_DOT_PRODUCT.intersection(machine.isa):
        notes.append("this CPU has no int8 dot product (VNNI, AMX, i8mm): int4 and int8 engines will be slow on it")
    return DoctorReport(
        machine=machine,
        packages=packages,
        execution_providers=providers,
        gpus=machine.gpus,
        targets=tuple(target_status(target, providers, machine.gpus) for target in TARGETS),
        notes=tuple(notes),
    )


def target_status(target: Target, providers: Sequence[str], gpus: Sequence[GpuDescription]) -> TargetStatus:
    """What one target can do, given ONNX Runtime's providers and the GPUs."""
    requirement, needs = target.requirement, []
    install = target.install
    installed = any(is_importable(module) for module in requirement.modules)
    if not installed:
        needs.append(f"{requirement.modules[0]} is not installed: {install}")
    elif requirement.provider is not None and requirement.provider not in providers:
        needs.append(
            f"the installed ONNX Runtime has no {requirement.provider}: "
            f"uninstall it (pip uninstall onnxruntime onnxruntime-gpu), then {install}"
        )
    missing = [module for module in requirement.companions if not is_importable(module)]
    needs += [f"{module} is not installed: {install}" for module in missing]
    prepared = installed if requirement.builds_with_modules else not needs
    if target.device == "gpu":
        needs += _gpu_needs(requirement, gpus)
    can_run = not needs
    can_build = prepared and (can_run or requirement.builds_without_gpu)
    return TargetStatus(target.name, can_build, can_run, tuple(needs))


def _gpu_needs(requirement: Requirement, gpus: Sequence[GpuDescription]) -> list[str]:
    if not gpus:
        suffix = ": building needs none, running does" if requirement.builds_without_gpu else ""
        return [f"nvidia-smi finds no NVIDIA GPU{suffix}"]
    wanted = requirement.capabilities
    if wanted and not any(gpu.compute_capability.startswith(wanted) for gpu in gpus):
        have = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in gpus)
        accepted = ", ".join(f"{each}x" if each.endswith(".") else each for each in wanted)
        return [f"{have} cannot run it: compute capability {accepted} is needed"]
    return []


def execution_providers() -> tuple[tuple[str, ...], str | None]:
    """ONNX Runtime's execution providers, best first, and why it does not load (None when it does or is absent)."""
    if not is_importable("onnxruntime"):
        return (), None
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return (), f"onnxruntime is installed but does not load: {error}"
    return tuple(onnxruntime.get_available_providers()), None
