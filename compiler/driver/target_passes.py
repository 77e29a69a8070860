"""What a user asked for as passes: the one place that knows which options mean which passes on which target.

In: options, the model's geometry, golden data where there are some. Out: passes in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.base.options import DEFAULT_CONTEXT, ChosenEffort, OptimizeOptions
from llmc.compiler.base.targets import get_target
from llmc.compiler.driver.capabilities import Capabilities
from llmc.compiler.quantization.plan import kept_zeros, make_plan, value_stands_alone
from llmc.compiler.quantization.solver import Solver
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.engine.check_cuda_kernels import CheckCudaKernels
from llmc.passes.graph_pass import GraphPass
from llmc.passes.pipeline import (
    GraphRequest,
    cpu_engine_passes,
    cpu_passes,
    cuda_engine_passes,
    cuda_passes,
    standard_passes,
    tensorrt_engine_passes,
)
from llmc.passes.quantization.move_scales import MoveScales
from llmc.passes.quantization.quantize_cache import QuantizeCache, Reaches
from llmc.passes.quantization.quantize_weights import QuantizeWeights

KERNEL_PRECISIONS = ("int4", "int5", "int6", "int8")
"""Weights in blocks of integers: llmc has CPU operators of its own for them, and a GPU reads them faster unpacked."""


@dataclass(frozen=True)
class Numbers:
    """How the numbers of quantized weights are chosen.

    Attributes:
        solver: Of all sites …
        solvers: … but those named here.
        chosen_by: In words, for the manifest.
        effort: How hard they were looked for; None: as hard as asked for, and nothing was found to be calibrated.
        cache_ranges: How far keys and values went on a text; None: it was not asked for, or there is none.
        moved_scales: Moves scales into weights before they are quantized; None: none are moved.
    """

    solver: Solver = field(default_factory=RoundToNearest)
    solvers: Mapping[str, Solver] = field(default_factory=dict)
    chosen_by: str = "rounding"
    effort: ChosenEffort | None = "round"
    cache_ranges: Reaches | None = None
    moved_scales: MoveScales | None = None


def target_passes(
    geometry: ModelGeometry,
    options: OptimizeOptions,
    capabilities: Capabilities,
    golden: Golden | None = None,
    numbers: Numbers | None = None,
) -> list[GraphPass]:
    """Passes from a portable graph to the target's.

    Args:
        geometry: The model's.
        options: What was asked for.
        capabilities: Of the runtime that the graph is for.
        golden: Brings the ranges of a cache in 8 bits where ``numbers`` have none.
        numbers: How quantized weights are chosen; None: by rounding.

    Raises:
        UsageError: the context is longer than the model's.
    """
    request = _request(geometry, options, capabilities, golden, numbers or Numbers())
    return _family_passes(options, request)


def float_passes(geometry: ModelGeometry, options: OptimizeOptions, capabilities: Capabilities) -> list[GraphPass]:
    """Passes from a portable graph to the target's before its weights are quantized, as calibration runs it.

    Its sites are those of the target's own graph, by the same names. It computes in float32, gives the logits of all
    tokens, its cache grows, and ONNX Runtime's CPU provider runs it.
    """
    request = _request(geometry, options, capabilities, None, Numbers())
    request = replace(request, activations="fp32", cache="grow", logits="all", quantized_cache=None)
    request = replace(request, qk_norm=False, gated_silu=False)
    passes = _family_passes(options, request)
    return list(itertools.takewhile(lambda item: not isinstance(item, QuantizeWeights), passes))


def _request(
    geometry: ModelGeometry,
    options: OptimizeOptions,
    capabilities: Capabilities,
    golden: Golden | None,
    numbers: Numbers,
) -> GraphRequest:
    row = get_target(options.target)
    on_cpu = row.family == "ort-cpu"
    return GraphRequest(
        max_positions=max_context(geometry, options),
        activations=options.activations if row.device == "gpu" else "fp32",
        cache=options.cache_io,
        logits=options.logits,
        moved_scales=numbers.moved_scales,
        quantization=_quantization(options, numbers),
        quantized_cache=_quantized_cache(options, golden, numbers),
        value_apart=value_stands_alone(make_plan(options)),
        pack_gate_up=options.precision not in KERNEL_PRECISIONS,
        # Asked of the CPU provider alone: a graph for CUDA goes without the one, and counts on the other.
        query_seqlens=on_cpu and capabilities.query_seqlens,
        expert_kernels=not on_cpu or capabilities.expert_kernels,
        check=CheckCudaKernels(capabilities.cuda_kernels, capabilities.cuda_unknown),
    )


def _family_passes(options: OptimizeOptions, request: GraphRequest) -> list[GraphPass]:
    match get_target(options.target).family:
        case "ort-cpu":
            return cpu_passes(request)
        case "ort-cuda":
            return cuda_passes(request)
        case "standard":
            return standard_passes(request)


def _quantized_cache(options: OptimizeOptions, golden: Golden | None, numbers: Numbers) -> QuantizeCache | None:
    if options.cache_precision == "auto":
        return None
    if numbers.cache_ranges is not None:
        return QuantizeCache.from_reaches(options.cache_precision, numbers.cache_ranges)
    return QuantizeCache.from_ranges(options.cache_precision, None if golden is None else golden.cache_ranges)


def _quantization(options: OptimizeOptions, numbers: Numbers) -> QuantizeWeights | None:
    if not (plan := make_plan(options)):
        return None
    row = get_target(options.target)
    return QuantizeWeights(
        plan,
        accuracy_level=4 if row.family == "ort-cpu" else 0,
        kept_zeros=kept_zeros(options),
        chosen_by=numbers.chosen_by,
        solver=numbers.solver,
        solvers=numbers.solvers,
        keep_stored=options.keep_quantization,
        offsets_by_mean=row.family == "ort-cuda",
    )


def max_context(geometry: ModelGeometry, options: OptimizeOptions) -> int:
    """Longest context of the target graph.

    Raises:
        UsageError: more is asked for than the model was made for.
    """
    return longest_context(geometry.max_position_embeddings, options)


def longest_context(limit: int | None, options: OptimizeOptions) -> int:
    """Longest context of the target graph of a model that was made for ``limit`` tokens, None: any number.

    Raises:
        UsageError: more is asked for.
    """
    if options.context is None:
        return min(limit or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if limit is not None and options.context > limit:
        raise UsageError(f"--context {options.context} is more than the {limit} positions of the model's context")
    return options.context


def engine_passes(target: Manifest) -> list[GraphPass]:
    """Passes from a target's graph to the engine's; none where the engine opens the graph itself."""
    row = get_target(target.target)
    match row.family:
        case "ort-cpu":
            return cpu_engine_passes() if target.precision in KERNEL_PRECISIONS else []
        case "ort-cuda":
            # Lengths can only be inputs where attention takes lengths, and a device's cache is one buffer.
            contract = target.contract
            return cuda_engine_passes() if contract.rows == "slot0" and contract.cache == "shared" else []
        case "standard":
            return tensorrt_engine_passes() if row.takes_sizes else []
