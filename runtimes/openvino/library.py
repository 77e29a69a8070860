"""The OpenVINO that is installed.

In: nothing. Out: the module, its version, and what its CPU plugin is told.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from llmc.compiler.base.errors import EngineError, MissingDependencyError

DEVICE = "CPU"
KV_CACHE_PRECISION = "KV_CACHE_PRECISION"


def load_openvino() -> ModuleType:
    """Import the library; MissingDependencyError where it is not installed."""
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        hint = "openvino is not installed; pip install 'llmc-toolchain[openvino]'"
        raise MissingDependencyError(hint) from error


def version_of(openvino: ModuleType) -> str:
    """Release, as ``2026.4.1``."""
    return str(openvino.__version__).split("-", 1)[0]


def require_reads(openvino: ModuleType, built_by: object) -> None:
    """Check that the library reads a model that release ``built_by`` wrote: newer ones read what older ones wrote.

    Raises:
        EngineError: it is older, or ``built_by`` is no release.
    """
    installed = version_of(openvino)
    try:
        wanted = tuple(map(int, str(built_by).split(".")))[:2]
    except ValueError as error:
        raise EngineError(f"the engine names no release of OpenVINO ({built_by!r}); build it again") from error
    if tuple(map(int, installed.split(".")))[:2] < wanted:
        raise EngineError(
            f"the engine was built by OpenVINO {built_by}, and {installed} is installed; install that or a newer "
            "release, or build the engine again"
        )


def plugin_options(core: Any, precision: str, threads: int) -> Mapping[str, Any]:
    """How the CPU plugin compiles an engine.

    float32 engines compute and keep their cache in float32: left alone, the plugin takes bfloat16 where the
    processor has it. Engines with small weights take bfloat16 there: the plugin's other fast way, activations in
    int8, neither takes the zero points of int4 weights, which are no whole numbers, nor is as exact.
    """
    exact = precision == "fp32" or "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32" if exact else "bf16",
    }
    if precision == "fp32":
        # The default rounds keys and values to eight bits.
        options[KV_CACHE_PRECISION] = "f32"
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    return options


def last_line(message: str) -> str:
    """OpenVINO's reports say the most at their end."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
