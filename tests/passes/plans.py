"""Passes that quantize weights, by what is asked of them: each is a plan for one family of operators."""

from __future__ import annotations

from typing import Any

from llmc.compiler.base.options import Zero
from llmc.compiler.quantization.scheme import FLOAT, scheme_name
from llmc.passes.quantization.quantize_weights import QuantizeWeights


def in_blocks(
    bits: int = 4,
    block_size: int = 32,
    symmetric: bool = True,
    offset: bool = False,
    head_bits: int = 4,
    accuracy_level: int = 4,
    kept_zeros: tuple[Zero, ...] = (),
    linear_block: int | None = None,
    by_mean: bool = False,
) -> QuantizeWeights:
    """Blocks of integers for ONNX Runtime's operators; experts have a zero point where layers have an offset."""
    zero = "" if symmetric else "-zero"
    names = {
        "linear": f"int{bits}-offset" if offset else f"int{bits}{zero}",
        "head": f"int{head_bits}{zero}",
        "embedding": f"int{head_bits}{zero}",
        "experts": f"int{bits}-zero" if offset else f"int{bits}{zero}",
    }
    plan = {kind: scheme_name(name, block_size) for kind, name in names.items()}
    plan["linear"] = scheme_name(names["linear"], linear_block or block_size)
    return QuantizeWeights(plan, accuracy_level, kept_zeros, offsets_by_mean=by_mean)


def in_standard(
    weights: Any, head: str | None = "int8", block_size: int = 32, offset: bool = False, offset_form: str = "sums"
) -> QuantizeWeights:
    """Numbers for DequantizeLinear; without ``head`` head and embedding keep their floats."""
    if offset:
        weights = {"sums": "int4-offset", "zero_point": "uint4-offset", "whole": "uint4-zero"}[offset_form]
    ends = FLOAT if head is None else scheme_name(f"qdq-{head}", block_size)
    return QuantizeWeights({"linear": scheme_name(f"qdq-{weights}", block_size), "head": ends, "embedding": ends}, 0)


def in_fp8(block_size: int = 128) -> QuantizeWeights:
    """8-bit floats for linear layers, the head among them, as CUDA has them."""
    return QuantizeWeights({"linear": scheme_name("fp8", block_size)}, 0, offsets_by_mean=True)
