"""The order of the passes.

In: what is asked for. Out: passes, in the order in which they run. Each pass says what it needs and what it gives
(:class:`~llmc.passes.graph_pass.Order`), and the runner refuses a list that does not fit; what that does not say is
said here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmc.compiler.base.contract import CacheKind, LogitsKind
from llmc.passes.cleanup.attach_bodies import AttachBodies
from llmc.passes.cleanup.expand_gemm import ExpandGemm
from llmc.passes.cleanup.fold_constants import FoldConstants
from llmc.passes.cleanup.inline_bodies import InlineBodies
from llmc.passes.cleanup.inline_recurrence import InlineRecurrence
from llmc.passes.cleanup.name_graph import NameGraph
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.cleanup.simplify_shapes import SimplifyShapes
from llmc.passes.cleanup.unique_node_names import UniqueNodeNames
from llmc.passes.engine.check_cuda_kernels import CheckCudaKernels
from llmc.passes.engine.gather_last_rows import GatherLastRows
from llmc.passes.engine.take_lengths import TakeLengths
from llmc.passes.engine.use_cpu_attention import UseCpuAttention
from llmc.passes.engine.use_cpu_gated_matmul import UseCpuGatedMatMul
from llmc.passes.engine.use_cpu_matmul import UseCpuMatMul
from llmc.passes.fusion.fuse_gated_silu import FuseGatedSilu
from llmc.passes.fusion.fuse_qk_norm import FuseQKNorm
from llmc.passes.fusion.fuse_rotary import FuseRotary
from llmc.passes.fusion.fuse_silu import FuseSilu
from llmc.passes.fusion.fuse_skip_norm import FuseSkipNorm
from llmc.passes.fusion.fuse_transposed_matmul import FuseTransposedMatMul
from llmc.passes.fusion.pack_gate_up import PackGateUp
from llmc.passes.fusion.pack_qkv import PackQKV
from llmc.passes.graph_pass import GraphPass
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.equal_head_widths import EqualHeadWidths
from llmc.passes.lowering.last_token_logits import LastTokenLogits
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.lowering.pin_angle_width import PinAngleWidth
from llmc.passes.lowering.set_cache_io import SetCacheIO
from llmc.passes.lowering.use_standard_attention import UseStandardAttention
from llmc.passes.portable.positions_by_row import PositionsByRow
from llmc.passes.portable.recognize_attention import RecognizeAttention
from llmc.passes.portable.use_position_ids import UsePositionIds
from llmc.passes.quantization.quantize_cache import QuantizeCache
from llmc.passes.quantization.quantize_weights import QuantizeWeights


@dataclass(frozen=True)
class CpuTarget:
    """What is asked of the graph for ONNX Runtime, in the first place for its CPU provider.

    Attributes:
        max_positions: Longest context.
        cache: How the KV cache goes in and out.
        logits: Of each row's last token, or of all.
        quantization: Weights' format; None keeps floats.
        query_seqlens: The runtime's GroupQueryAttention takes chunks whose rows differ in length.
        expert_kernels: The runtime has the operators for experts as they were measured.
    """

    max_positions: int
    cache: CacheKind = "shared"
    logits: LogitsKind = "last"
    quantization: QuantizeWeights | None = None
    query_seqlens: bool = True
    expert_kernels: bool = True


def portable_passes() -> list[GraphPass]:
    """A traced graph to the portable one."""
    return [
        # First: a trace repeats every shape computation, and what is equal is folded and simplified once.
        RemoveDeadCode(),
        ExpandGemm(),
        FoldConstants(),
        SimplifyShapes(),
        RemoveDeadCode(),
        NameGraph(),
        UsePositionIds(),
        PositionsByRow(),
        RemoveDeadCode(),
        # Its layouts meet the model's own.
        RecognizeAttention(),
        SimplifyShapes(),
        RemoveDeadCode(),
        AttachBodies(),
    ]


@dataclass(frozen=True)
class CudaTarget(CpuTarget):
    """What is asked of the graph for ONNX Runtime's CUDA provider, beside what is asked for the CPU's.

    Attributes:
        activations: Float type of activations and, unless ``quantized_cache`` says otherwise, of the KV cache.
        quantized_cache: Type of the KV cache's elements, where it is not that of the activations.
        pack_gate_up: Gate and up projections as one product and a Split. Measured on an H100: one product reads its
            weights faster than two in floats, two MatMulNBits are faster than one and the Split.
        gated_silu: The runtime has GatedRMSNorm.
        check: Names what the provider does not run.
    """

    query_seqlens: bool = False
    activations: Literal["fp16", "bf16"] = "fp16"
    quantized_cache: QuantizeCache | None = None
    pack_gate_up: bool = True
    gated_silu: bool = True
    check: CheckCudaKernels = field(default_factory=CheckCudaKernels)


@dataclass(frozen=True)
class StandardTarget:
    """What is asked of a graph for a runtime that reads operators of the ONNX standard: TensorRT, OpenVINO.

    Attributes:
        max_positions: Longest context.
        cache: ``scatter``: a buffer of fixed length, rows from slot 0 on; ``concat``: it grows, rows by the mask.
        activations: Float type of activations and of the KV cache.
        logits: Of each row's last token, or of all.
        quantization: Weights' format; None keeps floats.
    """

    max_positions: int
    cache: Literal["scatter", "concat"]
    activations: Literal["fp32", "fp16", "bf16"] = "fp32"
    logits: LogitsKind = "last"
    quantization: GraphPass | None = None


def cpu_passes(target: CpuTarget) -> list[GraphPass]:
    """The portable graph to ONNX Runtime's CPU provider."""
    return [
        *_fusions(target.max_positions),
        PackQKV(),
        PackGateUp(),
        FuseSilu(),
        FuseSkipNorm(),
        *_lowering(target, qk_norm=False),
        *_cache_io(target.cache),
        *_weights(target.quantization),
    ]


def cuda_passes(target: CudaTarget) -> list[GraphPass]:
    """The portable graph to ONNX Runtime's CUDA provider."""
    passes = [*_fusions(target.max_positions), PackQKV(with_qk_norm=True)]
    if target.pack_gate_up:
        passes.append(PackGateUp())
    passes.append(FuseSilu())
    if target.gated_silu:
        passes.append(FuseGatedSilu())
    passes += [
        FuseSkipNorm(),
        *_lowering(target, qk_norm=True),
        ConvertFloat(target.activations),
        *_cache_io(target.cache),
    ]
    if target.quantized_cache is not None:
        passes.append(target.quantized_cache)
    return [*passes, *_weights(target.quantization), target.check]


def standard_passes(target: StandardTarget) -> list[GraphPass]:
    """The portable graph to operators of the ONNX standard alone."""
    return [
        InlineRecurrence(),
        FoldConstants(),
        ConvertFloat(),
        *([LastTokenLogits()] if target.logits == "last" else []),
        *([EqualHeadWidths()] if target.cache == "scatter" else []),
        # Rotation and norms stay outside: these runtimes know both as standard operators and fuse them themselves.
        UseStandardAttention(target.cache, target.max_positions),
        # What was not lowered, and experts.
        InlineBodies(),
        # The layouts around attention meet the model's own and cancel.
        SimplifyShapes(),
        FoldConstants(),
        RemoveDeadCode(),
        # Eleven bits suffice for layers, but float16's range does not for what they add up to.
        *([] if target.activations == "fp32" else [ConvertFloat(target.activations, target.activations == "fp16")]),
        SetCacheIO("shared" if target.cache == "scatter" else "grow"),
        RemoveDeadCode(),
        *([PinAngleWidth()] if target.cache == "concat" else []),
        *([] if target.quantization is None else [target.quantization, RemoveDeadCode()]),
        UniqueNodeNames(),
    ]


def _fusions(max_positions: int) -> list[GraphPass]:
    """What moves into attention, for any of ONNX Runtime's providers."""
    return [
        # First: what the bodies hold is then seen by every pass.
        InlineRecurrence(),
        FoldConstants(),
        ConvertFloat(),
        FuseRotary(max_positions),
        RemoveDeadCode(),
        FuseQKNorm(),
        SimplifyShapes(),
        RemoveDeadCode(),
    ]


def _lowering(target: CpuTarget, *, qk_norm: bool) -> list[GraphPass]:
    """llmc's operators to the runtime's."""
    passes: list[GraphPass] = [LastTokenLogits()] if target.logits == "last" else []
    return [
        *passes,
        EqualHeadWidths(),
        LowerAttention(target.query_seqlens, qk_norm=qk_norm, max_positions=target.max_positions),
        # After what rewrites the router's arithmetic, from which it reads that weights are not negative.
        LowerMoE(kernel=target.expert_kernels),
    ]


def _cache_io(cache: CacheKind) -> list[GraphPass]:
    return [
        # What was not lowered has other parts inside than when it was exported, and so another body.
        AttachBodies(),
        SetCacheIO(cache),
        RemoveDeadCode(),
    ]


def _weights(quantization: GraphPass | None) -> list[GraphPass]:
    """The form in which weights are stored."""
    return [
        *([] if quantization is None else [quantization]),
        FuseTransposedMatMul(),
        RemoveDeadCode(),
        UniqueNodeNames(),
    ]


def cpu_engine_passes() -> list[GraphPass]:
    """The graph for ONNX Runtime's CPU provider to the one with llmc's own operators, over the same weights."""
    return [
        UseCpuMatMul(),
        UseCpuGatedMatMul(),
        UseCpuAttention(),
        # What computed the inputs that the operators do not take.
        RemoveDeadCode(),
        UniqueNodeNames(),
    ]


def cuda_engine_passes() -> list[GraphPass]:
    """The graph for ONNX Runtime's CUDA provider to the one that a decode loop on the device runs."""
    return [
        GatherLastRows(),
        RemoveDeadCode(),
        TakeLengths(),
        RemoveDeadCode(),
        UniqueNodeNames(),
    ]


def tensorrt_engine_passes() -> list[GraphPass]:
    """The graph for TensorRT to the one that an engine is built of."""
    return [TakeLengths(), RemoveDeadCode(), UniqueNodeNames()]
