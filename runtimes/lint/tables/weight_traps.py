"""Traps of quantized weights: DequantizeLinear by blocks before a MatMul.

Out: :data:`WEIGHT_TRAPS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from onnx import helper

from llmc.runtimes.lint.tables.probe import Array, Probe, Trap, make_probe, random

ROWS, IN, OUT, BLOCK = 2, 64, 32, 32
EVERY = ("tensorrt-rtx", "onnxruntime", "openvino")
ORT, DEQUANTIZE = ("onnxruntime",), "DequantizeLinear"


def blocked_weight(
    *,
    dtype: Any = ml_dtypes.int4,
    axis: int = 0,
    zero_point: int | None = None,
    float_type: Any = np.float16,
    transposed: bool = False,
) -> Probe:
    """``MatMul(x, DequantizeLinear(weight))`` with blocks of 32 along an axis of the weight.

    Args:
        dtype: Of the stored weight.
        axis: Along which scales repeat; the contracted one is 0, or 1 where the weight is stored transposed.
        zero_point: Of every block; None: none is given.
        float_type: Of activations and scales.
        transposed: The weight is stored [out, in] and transposed after it was dequantized.
    """
    shape = (OUT, IN) if transposed else (IN, OUT)
    blocks = tuple(size // BLOCK if index == axis else size for index, size in enumerate(shape))
    lowest = 0 if np.dtype(dtype).name.startswith("u") else -7
    stored = np.random.default_rng(0).integers(lowest, 8, shape).astype(dtype)
    weights: dict[str, Array] = {
        "stored": stored,
        "scales": (np.abs(random(*blocks)) * 0.1 + 0.01).astype(float_type),
    }
    if zero_point is not None:
        weights["zeros"] = np.full(blocks, zero_point).astype(dtype)
    return _product(weights, float_type, transposed=transposed, axis=axis, block_size=BLOCK)


def _product(weights: Mapping[str, Array], float_type: Any, *, transposed: bool, **attributes: int) -> Probe:
    nodes = [helper.make_node("DequantizeLinear", list(weights), ["weight"], name="dequantize", **attributes)]
    if transposed:
        nodes.append(helper.make_node("Transpose", ["weight"], ["turned"], name="turn", perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", nodes[-1].output[0]], ["y"], name="matmul"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(float_type))
    inputs = {"x": random(ROWS, IN, dtype=float_type)}
    return make_probe(nodes, inputs, {"y": (kind, [ROWS, OUT])}, weights=weights)


def transposed_table(*, zero_point: bool) -> Probe:
    """An embedding table with a scale per token, transposed to be the head too."""
    stored = np.random.default_rng(0).integers(-7, 8, (OUT, IN)).astype(np.int8)
    weights: dict[str, Array] = {"stored": stored, "scales": np.full(OUT, 0.1, np.float32)}
    if zero_point:
        weights["zeros"] = np.zeros(OUT, np.int8)
    return _product(weights, np.float32, transposed=True, axis=0)


float32 = partial(blocked_weight, float_type=np.float32)

WEIGHT_TRAPS = (
    Trap("dequantize-int4-axis", blocked_weight(axis=1), blocked_weight(), EVERY),
    Trap("dequantize-int4-zero-point", blocked_weight(zero_point=1), blocked_weight(zero_point=0), EVERY),
    Trap("dequantize-int4-unsigned", blocked_weight(dtype=ml_dtypes.uint4), blocked_weight(), EVERY),
    Trap("dequantize-int8-blocks", blocked_weight(dtype=np.int8), blocked_weight(), EVERY),
    Trap("dequantize-transposed", float32(axis=1, transposed=True), float32(), ORT, DEQUANTIZE),
    Trap("dequantize-int8", float32(dtype=np.int8), float32(), ORT, DEQUANTIZE),
    Trap("dequantize-float16", blocked_weight(), float32(), ORT, DEQUANTIZE),
    Trap(
        "dequantize-int8-transposed",
        transposed_table(zero_point=False),
        transposed_table(zero_point=True),
        ORT,
        optimized=True,
    ),
    Trap("dequantize-other-axis", float32(axis=1), float32(), ORT, DEQUANTIZE),
)
