"""The order of the passes.

In: what is asked for. Out: passes, in the order in which they run. Each pass says what it needs and what it gives
(:class:`~llmc.passes.graph_pass.Order`), and the runner refuses a list that does not fit; what that does not say is
said here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmc.compiler.base.contract import CacheKind, FloatType, LogitsKind
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
from llmc.passes.engine.use_cpu_gather import UseCpuGather
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
from llmc.passes.lowering.pad_heads import PadHeads
from llmc.passes.lowering.pin_angle_width import PinAngleWidth
from llmc.passes.lowering.set_cache_io import SetCacheIO
from llmc.passes.lowering.use_standard_attention import UseStandardAttention
from llmc.passes.portable.positions_by_row import PositionsByRow
from llmc.passes.portable.recognize_attention import RecognizeAttention
from llmc.passes.portable.use_position_ids import UsePositionIds
from llmc.passes.quantization.quantize_cache import QuantizeCache


@dataclass(frozen=True)
class GraphRequest:
    """What is asked of a target's graph, and what the runtime has for it.

    Attributes:
        max_positions: Longest context.
        activations: Float type of activations and, unless ``quantized_cache`` says otherwise, of the KV cache; the
            graph for ONNX Runtime's CPU provider is float32.
        cache: How the KV cache goes in and out.
        logits: Of each row's last token, or of all.
        moved_scales: On the CPU, moves scales from activations into weights that are then quantized.
        quantization: Weights' format; None keeps floats.
        quantized_cache: On CUDA, type of the KV cache's elements where it is not that of the activations.
        value_apart: On the CPU, query and key as one product and the value as another, whose weights are stored in
            more bits.
        pack_gate_up: On CUDA, gate and up projections as one product and a Split. Measured on an H100: one product
            reads its weights faster than two in floats, two MatMulNBits are faster than one and the Split.
        gated_silu: The CUDA provider has GatedRMSNorm.
        qk_norm: The CUDA provider's attention normalizes queries and keys; where the graph is to run on the CPU
            provider, attention that does so keeps its body.
        query_seqlens: The provider's GroupQueryAttention takes chunks whose rows differ in length.
        expert_kernels: The provider has the operators for experts as they were measured.
        check: Names what the CUDA provider does not run.
    """

    max_positions: int
    activations: FloatType = "fp32"
    cache: CacheKind = "shared"
    logits: LogitsKind = "last"
    moved_scales: GraphPass | None = None
    quantization: GraphPass | None = None
    quantized_cache: QuantizeCache | None = None
    value_apart: bool = False
    pack_gate_up: bool = True
    gated_silu: bool = True
    qk_norm: bool = True
    query_seqlens: bool = True
    expert_kernels: bool = True
    check: CheckCudaKernels = field(default_factory=CheckCudaKernels)


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


def cpu_passes(request: GraphRequest) -> list[GraphPass]:
    """The portable graph to ONNX Runtime's CPU provider."""
    return [
        *_fusions(request.max_positions),
        PackQKV(value_apart=request.value_apart),
        PackGateUp(),
        FuseSilu(),
        FuseSkipNorm(),
        *_lowering(request, qk_norm=False),
        *_cache_io(request.cache),
        *([] if request.moved_scales is None else [request.moved_scales]),
        *_weights(request.quantization),
    ]


def cuda_passes(request: GraphRequest) -> list[GraphPass]:
    """The portable graph to ONNX Runtime's CUDA provider."""
    passes = [*_fusions(request.max_positions), PackQKV(with_qk_norm=True)]
    if request.pack_gate_up:
        passes.append(PackGateUp())
    passes.append(FuseSilu())
    if request.gated_silu:
        passes.append(FuseGatedSilu())
    passes += [
        FuseSkipNorm(),
        *_lowering(request, qk_norm=request.qk_norm),
        ConvertFloat(request.activations),
        *_cache_io(request.cache),
    ]
    if request.quantized_cache is not None:
        passes.append(request.quantized_cache)
    return [*passes, *_weights(request.quantization), request.check]


def standard_passes(request: GraphRequest) -> list[GraphPass]:
    """The portable graph to operators of the ONNX standard alone."""
    shared, activations = request.cache == "shared", request.activations
    return [
        InlineRecurrence(),
        FoldConstants(),
        ConvertFloat(),
        *([LastTokenLogits()] if request.logits == "last" else []),
        *([EqualHeadWidths()] if shared else []),
        # Rotation and norms stay outside: these runtimes know both as standard operators and fuse them themselves.
        UseStandardAttention("scatter" if shared else "concat", request.max_positions),
        # What was not lowered, and experts.
        InlineBodies(),
        # The layouts around attention meet the model's own and cancel.
        SimplifyShapes(),
        FoldConstants(),
        RemoveDeadCode(),
        # Eleven bits suffice for layers, but float16's range does not for what they add up to.
        *([] if activations == "fp32" else [ConvertFloat(activations, activations == "fp16")]),
        SetCacheIO(request.cache),
        RemoveDeadCode(),
        *([] if shared else [PinAngleWidth()]),
        *([] if request.quantization is None else [request.quantization, RemoveDeadCode()]),
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


def _lowering(request: GraphRequest, *, qk_norm: bool) -> list[GraphPass]:
    """llmc's operators to the runtime's."""
    passes: list[GraphPass] = [LastTokenLogits()] if request.logits == "last" else []
    return [
        *passes,
        EqualHeadWidths(),
        PadHeads(),
        LowerAttention(request.query_seqlens, qk_norm=qk_norm, max_positions=request.max_positions),
        # After what rewrites the router's arithmetic, from which it reads that weights are not negative.
        LowerMoE(kernel=request.expert_kernels),
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
        UseCpuGather(),
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
