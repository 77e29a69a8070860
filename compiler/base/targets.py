"""The targets: one row each, with everything in which they differ for whoever does not run them.

In: a name as ``--target`` takes it. Out: :class:`Target`. What only the runtime itself has to know lies in its folder
under ``runtimes/``; which passes make its graph is its family's function in ``compiler/driver/target_passes.py``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llmc.compiler.base.contract import CacheKind
from llmc.compiler.base.errors import MissingDependencyError, UsageError
from llmc.compiler.base.versions import DISTRIBUTION

TargetName = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino"]
Family = Literal["ort-cpu", "ort-cuda", "standard"]
WeightType = Literal["fp32", "fp16", "bf16", "int8", "int6", "int5", "int4", "fp8", "nvfp4"]
ORT_RELEASE = "1.32"
"""The release of ONNX Runtime for which graphs are made; what its operators take is recorded (``ort-1.32.json``)."""


@dataclass(frozen=True)
class Requirement:
    """What a target needs beyond llmc's own dependencies; the pip extra of the target's name installs it.

    Attributes:
        packages: Distributions of which a report says the version.
        modules: Any one of these importable modules will do.
        companions: Each of these must be importable too.
        provider: ONNX Runtime execution provider that must be there, or None.
        capabilities: Compute capabilities that can run it; empty: all. ``12.`` stands for all 12.x.
        builds_without_gpu: Engines can be built where they cannot run.
        builds_with_modules: Building needs one of ``modules`` alone: no provider, no companions.
    """

    packages: tuple[str, ...]
    modules: tuple[str, ...]
    companions: tuple[str, ...] = ()
    provider: str | None = None
    capabilities: tuple[str, ...] = ()
    builds_without_gpu: bool = False
    builds_with_modules: bool = False


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: As ``--target`` takes it.
        title: Name of the runtime in sentences.
        runtime: Name of the engine that builds and opens it, as in ``runtimes/engines.py``.
        family: Which passes make its graph.
        device: Where its engines compute.
        precisions: Types of weights; the first is what ``auto`` stands for.
        packed_precisions: Types of weights that can be packed for llmc's own operators.
        rounds_activations: Products with weights in integers round what they read to integers, too.
        caches: How the KV cache may go in and out; the first is what ``auto`` stands for.
        requirement: What must be installed.
        asks_runtime: Its graphs differ by what the runtime's operators take.
        runs_on_ort_cpu: ONNX Runtime's CPU provider runs its graph as it is.
        cache_precisions: Types that the KV cache may have beside that of the activations.
        takes_sizes: Engines are built for a number of rows, chunks, lengths of the cache and kinds of GPU.
        builds_without_weights: An engine can be made of a graph whose weights are not there.
        arena_factor: What the runtime's memory pool holds for each byte that is alive. For ONNX Runtime measured with
            SmolLM2-135M in float32 on the CPU provider: resident memory rose by 2.0 to 2.1 times the live set in
            chunks of 1,024 to 4,096 tokens; not measured on a GPU. TensorRT keeps none.
        not_counted: What the runtime allocates and no graph tells, a clause; empty: nothing.
        genai_providers: ``provider_options`` of ONNX Runtime GenAI, which also choose the provider (none: the CPU);
            None where it cannot run the target's graphs.
    """

    name: TargetName
    title: str
    runtime: str
    family: Family
    device: Literal["cpu", "gpu"]
    precisions: tuple[WeightType, ...]
    caches: tuple[CacheKind, ...]
    requirement: Requirement
    asks_runtime: bool = False
    runs_on_ort_cpu: bool = True
    cache_precisions: tuple[str, ...] = ()
    packed_precisions: tuple[WeightType, ...] = ()
    rounds_activations: bool = False
    takes_sizes: bool = False
    builds_without_weights: bool = False
    arena_factor: int = 2
    not_counted: str = "weights that ONNX Runtime copies into another layout when it opens the engine"
    genai_providers: tuple[Mapping[str, Mapping[str, str]], ...] | None = None

    @property
    def install(self) -> str:
        """Command that installs what it needs."""
        return f"pip install '{DISTRIBUTION}[{self.name}]'"

    def require_installed(self) -> None:
        """Say that the runtime is missing, without loading it.

        Raises:
            MissingDependencyError: it is not installed.
        """
        if not any(is_importable(module) for module in self.requirement.modules):
            raise MissingDependencyError(f"{self.title} is not installed; {self.install}")


_TENSORRT = Target(
    name="tensorrt",
    title="TensorRT",
    runtime="tensorrt",
    family="standard",
    device="gpu",
    precisions=("fp16", "bf16", "int8", "int4", "fp8", "nvfp4"),
    caches=("shared",),
    requirement=Requirement(("tensorrt",), ("tensorrt",), companions=("cuda.bindings",)),
    takes_sizes=True,
    arena_factor=1,
    not_counted="kernels that TensorRT compiles when it opens the engine; none of this was measured on a GPU",
)
TARGETS = (
    Target(
        name="cpu",
        title="ONNX Runtime",
        runtime="onnxruntime-cpu",
        family="ort-cpu",
        device="cpu",
        precisions=("fp32", "int8", "int6", "int5", "int4"),
        caches=("shared", "grow"),
        requirement=Requirement(
            ("onnxruntime",), ("onnxruntime",), provider="CPUExecutionProvider", builds_without_gpu=True
        ),
        packed_precisions=("int8", "int6", "int5", "int4"),
        rounds_activations=True,
        asks_runtime=True,
        genai_providers=(),
    ),
    Target(
        name="cuda",
        title="ONNX Runtime",
        runtime="onnxruntime-cuda",
        family="ort-cuda",
        device="gpu",
        precisions=("fp16", "bf16", "int8", "int4", "fp8"),
        caches=("shared", "grow"),
        requirement=Requirement(
            ("onnxruntime-gpu", "cuda-bindings", "nvidia-ml-py"),
            ("onnxruntime",),
            companions=("cuda.bindings",),
            provider="CUDAExecutionProvider",
            builds_without_gpu=True,
            builds_with_modules=True,
        ),
        runs_on_ort_cpu=False,
        cache_precisions=("int8", "fp8"),
        builds_without_weights=True,
        not_counted="",
        # Under a CUDA graph GenAI's mask is as wide as the cache, and a prompt would pass for a later chunk.
        genai_providers=({"cuda": {"enable_cuda_graph": "0"}},),
    ),
    _TENSORRT,
    replace(
        _TENSORRT,
        name="tensorrt-rtx",
        title="TensorRT-RTX",
        runtime="tensorrt-rtx",
        requirement=Requirement(
            ("tensorrt-rtx-cu13-bindings",),
            ("tensorrt_rtx_bindings",),
            companions=("cuda.bindings",),
            capabilities=("7.5", "8.0", "8.6", "8.9", "12."),
            builds_without_gpu=True,
            builds_with_modules=True,
        ),
    ),
    Target(
        name="openvino",
        title="OpenVINO",
        runtime="openvino-cpu",
        family="standard",
        device="cpu",
        precisions=("fp32", "int8", "int4"),
        caches=("grow",),
        requirement=Requirement(("openvino",), ("openvino",)),
    ),
)


def is_importable(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def get_target(name: str | None) -> Target:
    """The row of a target; None stands for a graph for any runtime, which is run as one for the CPU.

    Raises:
        UsageError: there is none of this name.
    """
    row = next((target for target in TARGETS if target.name == (name or "cpu")), None)
    if row is None:
        raise UsageError(f"--target {name} is none of {', '.join(target.name for target in TARGETS)}")
    return row
