"""com.microsoft operators that language models use, with shapes: what other runtimes make of them.

Out: :func:`microsoft_cases`, an operator's label -> one probe per float type. The operators are ONNX Runtime's own,
so its CPU provider says what must come out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import helper

from llmc.runtimes.lint.tables.gqa_traps import gqa
from llmc.runtimes.lint.tables.probe import MICROSOFT, Array, Probe, make_probe, random

ROWS, SEQUENCE, HIDDEN, OUT, BLOCK = 1, 4, 64, 32, 32
FLOAT_TYPES = {"float32": np.float32, "float16": np.float16}
GQA = f"{MICROSOFT}::GroupQueryAttention"


def microsoft_cases() -> Mapping[str, Mapping[str, Probe]]:
    """Probes by operator and float type."""
    found = {
        f"{MICROSOFT}::{name}": {kind: make(dtype) for kind, dtype in FLOAT_TYPES.items()}
        for name, make in _MAKERS.items()
    }
    return {**found, GQA: {"float32": gqa(scale=0.25)}}


def _node(op_type: str, inputs: Mapping[str, Array], weights: Mapping[str, Array], **attributes: Any) -> Probe:
    """The operator on the given inputs, then weights; one output of the first input's type."""
    order = attributes.pop("order", [*inputs, *weights])
    width = attributes.pop("width", HIDDEN)
    first = next(iter(inputs.values()))
    node = helper.make_node(op_type, order, ["y"], name=op_type, domain=MICROSOFT, **attributes)
    kind = helper.np_dtype_to_tensor_dtype(first.dtype)
    return make_probe([node], inputs, {"y": (kind, [*first.shape[:-1], width])}, weights=weights)


def _x(dtype: Any, seed: int = 0) -> Array:
    return random(ROWS, SEQUENCE, HIDDEN, seed=seed, dtype=dtype)


def _mat_mul_n_bits(dtype: Any) -> Probe:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "packed": rng.integers(0, 256, (OUT, HIDDEN // BLOCK, BLOCK // 2), dtype=np.uint8),
        "scales": (rng.random((OUT, HIDDEN // BLOCK)) * 0.1).astype(dtype),
    }
    return _node("MatMulNBits", {"x": _x(dtype)}, weights, K=HIDDEN, N=OUT, bits=4, block_size=BLOCK, width=OUT)


def _multi_head_attention(dtype: Any) -> Probe:
    inputs = {name: _x(dtype, seed) for seed, name in enumerate(("q", "k", "v"))}
    return _node("MultiHeadAttention", inputs, {}, num_heads=4)


def _rotary(dtype: Any) -> Probe:
    angles = np.outer(np.arange(16), 10000.0 ** (-np.arange(8) / 8))
    positions = np.arange(SEQUENCE, dtype=np.int64)[None] + 2
    weights = {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype)}
    return _node("RotaryEmbedding", {"x": _x(dtype), "positions": positions}, weights, num_heads=4, interleaved=0)


def _skip_norm(op_type: str) -> Callable[[Any], Probe]:
    def make(dtype: Any) -> Probe:
        return _node(op_type, {"x": _x(dtype), "skip": _x(dtype, 1)}, {"gamma": random(HIDDEN, seed=2, dtype=dtype)})

    return make


def _unary(op_type: str) -> Callable[[Any], Probe]:
    return lambda dtype: _node(op_type, {"x": _x(dtype)}, {})


def _bias(op_type: str) -> Callable[[Any], Probe]:
    return lambda dtype: _node(op_type, {"x": _x(dtype)}, {"bias": random(HIDDEN, seed=3, dtype=dtype)})


def _fused_mat_mul(dtype: Any) -> Probe:
    weights = {"w": random(OUT, HIDDEN, seed=4, dtype=dtype)}
    return _node("FusedMatMul", {"x": _x(dtype)}, weights, transB=1, alpha=0.5, width=OUT)


_MAKERS: Mapping[str, Callable[[Any], Probe]] = {
    "MatMulNBits": _mat_mul_n_bits,
    "MultiHeadAttention": _multi_head_attention,
    "RotaryEmbedding": _rotary,
    "SkipSimplifiedLayerNormalization": _skip_norm("SkipSimplifiedLayerNormalization"),
    "SkipLayerNormalization": _skip_norm("SkipLayerNormalization"),
    "Gelu": _unary("Gelu"),
    "FastGelu": _unary("FastGelu"),
    "QuickGelu": _unary("QuickGelu"),
    "BiasGelu": _bias("BiasGelu"),
    "FusedMatMul": _fused_mat_mul,
}
