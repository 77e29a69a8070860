"""Operators of ONNX Runtime (``com.microsoft``), their inputs and outputs by the names of ONNX Runtime's schemas.

Passes make calls of them and recognise calls; what counts weights and arithmetic reads calls of any graph. A test
compares the names with the schemas of the installed ONNX Runtime.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.graph.operators.signature import Signature

DOMAIN = "com.microsoft"

GROUP_QUERY_ATTENTION = Signature(
    DOMAIN,
    "GroupQueryAttention",
    (
        *("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"),
        *("cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale"),
        *("q_norm_weight", "k_norm_weight", "query_seqlens"),
    ),
    ("output", "present_key", "present_value"),
)
HEAD_MULTIPLE, ROTATED_HEAD_MULTIPLE = 8, 16
"""Heads of GroupQueryAttention are multiples of the one, and of the other where it rotates them itself, on every
provider (``group_query_attention_helper.h``). Wider ones than 256 run, on CUDA by a slower kernel."""
MULTI_HEAD_ATTENTION = Signature(
    DOMAIN,
    "MultiHeadAttention",
    (
        *("query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key", "past_value"),
        *("past_sequence_length", "cache_indirection"),
    ),
    ("output", "present_key", "present_value"),
)
ROTARY_EMBEDDING = Signature(DOMAIN, "RotaryEmbedding", ("input", "position_ids", "cos_cache", "sin_cache"))
MATMUL_NBITS = Signature(DOMAIN, "MatMulNBits", ("A", "B", "scales", "zero_points", "g_idx", "bias"), ("Y",))
MATMUL_FP8 = Signature(DOMAIN, "MatMulBlockQuantizedFp8Weight", ("A", "B", "b_scale", "a_scale", "bias"), ("Y",))
DYNAMIC_MATMUL = Signature(DOMAIN, "DynamicQuantizeMatMul", ("A", "B", "b_scale", "b_zero_point", "bias"), ("Y",))
FUSED_MATMUL = Signature(DOMAIN, "FusedMatMul", ("A", "B"), ("Y",))
GATHER_QUANTIZED = Signature(DOMAIN, "GatherBlockQuantized", ("data", "indices", "scales", "zero_points"))
DEQUANTIZE_LINEAR = Signature(DOMAIN, "DequantizeLinear", ("x", "x_scale", "x_zero_point"), ("y",))
SKIP_NORM = Signature(
    DOMAIN,
    "SkipSimplifiedLayerNormalization",
    ("input", "skip", "gamma", "bias"),
    ("output", "mean", "inv_std_var", "input_skip_bias_sum"),
)
QUICK_GELU = Signature(DOMAIN, "QuickGelu", ("X",), ("Y",))
GATED_NORM = Signature(DOMAIN, "GatedRMSNorm", ("X", "scale", "gate"), ("Y",))
GATED_SILU_EPSILON = 2.0**30
"""Of a gated norm: the mean of squares vanishes beside it."""
MOE = Signature(
    DOMAIN,
    "MoE",
    (
        *("input", "router_probs", "fc1_experts_weights", "fc1_experts_bias", "fc2_experts_weights"),
        *("fc2_experts_bias", "fc3_experts_weights", "fc3_experts_bias"),
    ),
)
QMOE = Signature(
    DOMAIN,
    "QMoE",
    (
        *("input", "router_probs", "fc1_experts_weights", "fc1_scales", "fc1_experts_bias"),
        *("fc2_experts_weights", "fc2_scales", "fc2_experts_bias"),
        *("fc3_experts_weights", "fc3_scales", "fc3_experts_bias"),
        *("fc1_zero_points", "fc2_zero_points", "fc3_zero_points"),
    ),
)
SIGNATURES = (
    *(GROUP_QUERY_ATTENTION, MULTI_HEAD_ATTENTION, ROTARY_EMBEDDING, MATMUL_NBITS, MATMUL_FP8, DYNAMIC_MATMUL),
    *(FUSED_MATMUL, GATHER_QUANTIZED, DEQUANTIZE_LINEAR, SKIP_NORM, QUICK_GELU, GATED_NORM, MOE, QMOE),
)


def is_gated_silu(node: ir.Node) -> bool:
    """Whether a gated norm's epsilon is so large that nothing is normalized: it is ``X * silu(gate)``."""
    epsilon = node.attributes.get_float("epsilon", 0.0)
    return GATED_NORM.is_call(node) and epsilon is not None and epsilon >= GATED_SILU_EPSILON


def head_multiple(*, rotary: bool) -> int:
    """What the width of a head of GroupQueryAttention is a multiple of."""
    return ROTATED_HEAD_MULTIPLE if rotary else HEAD_MULTIPLE


def refused_head(head: int | str | None, *, rotary: bool) -> str | None:
    """Why GroupQueryAttention does not take heads of this width, or of one that is not known; None where it does."""
    multiple = head_multiple(rotary=rotary)
    if isinstance(head, int) and head > 0 and head % multiple == 0:
        return None
    where = " where it rotates them" if rotary else ""
    return f"GroupQueryAttention takes heads whose width is a multiple of {multiple}{where}, not {head}"
