"""An embedding, three linear layers and a head, and the same layers in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .graphs import Array, draw, parse

VOCABULARY, HIDDEN, INNER = 96, 64, 128
IDS = {"ids": np.asarray([[3, 0, 95, 17], [1, 1, 2, 50]])}
TEXT = """main_graph (int64[batch, seq] ids) => (float[batch, seq, 96] logits) {
    x = Gather(table, ids)
    up = MatMul(x, up_w)
    biased = Add(up, up_b)
    gate = MatMul(x, gate_w)
    act = Mul(biased, gate)
    down = MatMul(act, down_w)
    %s
}"""
UNTIED, TIED = "logits = MatMul(down, head_w)", "turned = Transpose<perm=[1,0]>(table)\nlogits = MatMul(down, turned)"
FORMATS: list[Any] = ["int8", "fp8", "int4", "nvfp4"]
ZERO_POINT: dict[str, Any] = {"weights": "int4", "offset": True, "offset_form": "zero_point"}
WHOLE: dict[str, Any] = ZERO_POINT | {"offset_form": "whole"}
TYPES = {
    "int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN, "int4": ir.DataType.INT4,
    "nvfp4": ir.DataType.FLOAT4E2M1,
}  # fmt: skip


def weights() -> dict[str, Array]:
    return {
        "table": draw(VOCABULARY, HIDDEN),
        "up_w": draw(HIDDEN, INNER, seed=1, scale=0.2) + np.float32(0.1),
        "up_b": draw(INNER, seed=2),
        "gate_w": draw(HIDDEN, INNER, seed=5, scale=0.2),
        "down_w": draw(INNER, HIDDEN, seed=3, scale=0.2),
        "head_w": draw(HIDDEN, VOCABULARY, seed=4),
    }


def make(head: str = UNTIED, *, lazy: bool = True) -> ir.Model:
    given = weights()
    if head != UNTIED:
        del given["head_w"]
    model = parse(TEXT % head, given, lazy=lazy)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def two_layers(given: dict[str, Array]) -> ir.Model:
    """A linear layer ``w`` and a head."""
    width, out = given["w"].shape[0], given["head"].shape[1]
    body = "h = MatMul(x, w) \n logits = MatMul(h, head)"
    return parse(f"m (float[n, {width}] x) => (float[n, {out}] logits) {{ {body} }}", given, lazy=True)


def require_standard(model: ir.Model) -> None:
    """Its operators are ONNX's, and their types and shapes agree."""
    assert {node.domain for node in model.graph} == {""}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def forward(matrices: dict[str, Array], bias: Array, *, tied: bool) -> Array:
    """The same layers in NumPy, float64; matrices are [out, in]."""
    x = matrices["table"][IDS["ids"]]
    act = (x @ matrices["up_w"].T + bias) * (x @ matrices["gate_w"].T)
    result: Array = (act @ matrices["down_w"].T) @ matrices["table" if tied else "head_w"].T
    return result
