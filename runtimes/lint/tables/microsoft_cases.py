"""com.microsoft operators that language models use, with shapes: what other runtimes make of them.

Out: :func:`microsoft_cases`, an operator's label -> one probe per float type. The operators are ONNX Runtime's own,
so its CPU provider says what must come out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from onnx import helper

from llmc.runtimes.lint.tables.attention_traps import gqa
from llmc.runtimes.lint.tables.probe import MICROSOFT, Array, Probe, make_probe, random

ROWS, SEQUENCE, HIDDEN, OUT, BLOCK = 1, 4, 64, 32, 32
Maker: TypeAlias = Callable[[Any], Probe]
FLOAT_TYPES = {"float32": np.float32, "float16": np.float16}
SKIP_NORMS = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
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
    width = attributes.pop("width", HIDDEN)
    first = next(iter(inputs.values()))
    node = helper.make_node(op_type, [*inputs, *weights], ["y"], name=op_type, domain=MICROSOFT, **attributes)
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


def _rotary(dtype: Any) -> Probe:
    angles = np.outer(np.arange(16), 10000.0 ** (-np.arange(8) / 8))
    positions = np.arange(SEQUENCE, dtype=np.int64)[None] + 2
    weights = {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype)}
    return _node("RotaryEmbedding", {"x": _x(dtype), "positions": positions}, weights, num_heads=4, interleaved=0)


def _on_hidden(op_type: str, *inputs: str, seeds: Mapping[str, int] = {}, **attributes: int) -> Maker:
    """The operator on arrays of one shape, and on vectors of the hidden width from their seeds."""

    def make(dtype: Any) -> Probe:
        arrays = {name: _x(dtype, seed) for seed, name in enumerate(inputs)}
        vectors = {name: random(HIDDEN, seed=seed, dtype=dtype) for name, seed in seeds.items()}
        return _node(op_type, arrays, vectors, **attributes)

    return make


def _fused_mat_mul(dtype: Any) -> Probe:
    weights = {"w": random(OUT, HIDDEN, seed=4, dtype=dtype)}
    return _node("FusedMatMul", {"x": _x(dtype)}, weights, transB=1, alpha=0.5, width=OUT)


_MAKERS: Mapping[str, Maker] = {
    "MatMulNBits": _mat_mul_n_bits,
    "RotaryEmbedding": _rotary,
    "FusedMatMul": _fused_mat_mul,
    "MultiHeadAttention": _on_hidden("MultiHeadAttention", "q", "k", "v", num_heads=4),
    **{name: _on_hidden(name, "x", "skip", seeds={"gamma": 2}) for name in SKIP_NORMS},
    **{name: _on_hidden(name, "x") for name in ("Gelu", "FastGelu", "QuickGelu")},
    "BiasGelu": _on_hidden("BiasGelu", "x", seeds={"bias": 3}),
}
