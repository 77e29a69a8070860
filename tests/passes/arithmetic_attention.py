"""Attention as models compute it by themselves: in standard operators, over keys and values appended to a cache.

x ─MatMul→ Reshape ─Transpose→ [B,H,S,D] ─MatMul(keysᵀ)→ scale, bias, mask ─Softmax→ ─MatMul(values)→ Transpose
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .graphs import Array, draw, draw_all, parse

HIDDEN, HEADS, DIM, SCALE = 24, 4, 8, 0.3
LOWEST = float(np.finfo(np.float32).min)
HALF_LOWEST = -60000.0
SLOPES = tuple(2.0 ** -np.arange(2, 2 + 2 * HEADS, 2))
SHAPES = {
    "mixed": ["batch", HEADS, "sequence", DIM],
    "t": ["batch", "sequence", HEADS, DIM],
    "y": ["batch", "sequence", HEADS * DIM],
}
"""What a trace knows, and shape inference does not."""


@dataclass(frozen=True)
class Arithmetic:
    """A decoder's attention in standard operators; each field is a piece of ONNX text with the layer as ``{i}``."""

    near: str = "near = Identity(causal)"
    real: str = "real = Cast<to=9>(attention_mask)"
    query: str = "scaled{i} = Identity(q{i}_lin)"
    keys: str = "all_k{i} = Identity(pk{i})\n all_v{i} = Identity(pv{i})"
    scores: str = "scored{i} = Mul(product{i}, scale)"
    bias: str = "biased{i} = Identity(scored{i})"
    mask: str = "masked{i} = Add(biased{i}, additive)"
    weights: str = "weighted{i} = Identity(weights{i})"
    merge: str = "t{i} = Transpose<perm=[0,2,1,3]>(mixed{i})\n y{i} = Reshape(t{i}, merged)"
    kv_heads: int = HEADS
    layers: int = 1
    half: bool = False
    constants: dict[str, Any] = field(default_factory=dict)

    def model(self) -> ir.Model:
        names = [f"past_key_values.{i}.{kind}" for i in range(self.layers) for kind in ("key", "value")]
        past = f"float[batch, {self.kv_heads}, past, {DIM}]"
        outputs = ", ".join(f'"{name.replace("past_key_values", "present")}"' for name in names)
        text = f"""m (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
            int64[batch, sequence] position_ids, float[batch, sequence, {HIDDEN}] x,
            {", ".join(f'{past} "{name}"' for name in names)}) => (y, {outputs}) {{
            {MASK.format(near=self.near, real=self.real)}
            {"".join(self._layer(i) for i in range(self.layers))} y = MatMul(y{self.layers - 1}, w_o) }}"""
        weights = self._weights()
        if self.half:
            text = text.replace("float[", "float16[").replace("Cast<to=1>", "Cast<to=10>")
            halves = {
                n: np.maximum(x, HALF_LOWEST).astype(np.float16) for n, x in weights.items() if x.dtype.kind == "f"
            }
            weights |= halves
        model = parse(text, weights)
        for value in (output for node in model.graph for output in node.outputs):
            shape = SHAPES.get((value.name or "").rstrip("0123456789"))
            if shape is not None and value.name != "y":
                value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT16 if self.half else ir.DataType.FLOAT
            elif not value.is_graph_output():
                value.shape = None
        model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
        for node in [node for node in model.graph if node.op_type == "Identity"]:
            source = node.inputs[0]
            assert source is not None
            assert not node.outputs[0].is_graph_output()
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
        return model

    def _layer(self, i: int) -> str:
        x = "x" if i == 0 else f"x{i}"
        before = f"x{i} = MatMul(y{i - 1}, w_o)" if i else ""
        return f"""{before}
            {"".join(f"{n}{i}_lin = MatMul({x}, w_{n}) " for n in "qkv")}
            {self.query.format(i=i)}
            q{i}_split = Reshape(scaled{i}, q_heads)
            q{i} = Transpose<perm=[0,2,1,3]>(q{i}_split)
            k{i}_split = Reshape(k{i}_lin, k_heads) v{i}_split = Reshape(v{i}_lin, k_heads)
            k{i} = Transpose<perm=[0,2,1,3]>(k{i}_split) v{i} = Transpose<perm=[0,2,1,3]>(v{i}_split)
            pk{i} = Concat<axis=2>("past_key_values.{i}.key", k{i})
            pv{i} = Concat<axis=2>("past_key_values.{i}.value", v{i})
            "present.{i}.key" = Cast<to=1>(pk{i}) "present.{i}.value" = Cast<to=1>(pv{i})
            {self.keys.format(i=i)}
            turned{i} = Transpose<perm=[0,1,3,2]>(all_k{i})
            product{i} = MatMul(q{i}, turned{i})
            {self.scores.format(i=i)}
            {self.bias.format(i=i)}
            {self.mask.format(i=i)}
            weights{i} = Softmax<axis=-1>(masked{i})
            {self.weights.format(i=i)}
            mixed{i} = MatMul(weighted{i}, all_v{i})
            {self.merge.format(i=i)}
            """

    def _weights(self) -> dict[str, Array]:
        width, kv_width = HEADS * DIM, self.kv_heads * DIM
        shapes = {
            "w_q": (HIDDEN, width),
            "w_k": (HIDDEN, kv_width),
            "w_v": (HIDDEN, kv_width),
            "w_o": (width, HIDDEN),
        }
        made: dict[str, Any] = dict(draw_all(shapes, scale=0.3))
        made |= {"q_heads": [0, 0, HEADS, DIM], "k_heads": [0, 0, self.kv_heads, DIM], "merged": [0, 0, width]}
        made |= {
            "zero": 0,
            "one": 1,
            "axis0": [0],
            "axis1": [1],
            "axis2": [2],
            "axis3": [3],
            "axes01": [0, 1],
            "axes12": [1, 2],
        }
        made |= {"scale": np.float32(SCALE), "none": np.float32(0), "lowest": np.float32(LOWEST)}
        made |= {"slopes": np.asarray(SLOPES, np.float32).reshape(1, HEADS, 1, 1)}
        made |= self.constants
        return {name: np.asarray(x, np.int64) if isinstance(x, int | list) else x for name, x in made.items()}


MASK = """
    seq1 = Shape<start=1, end=2>(input_ids) past1 = Shape<start=2, end=3>("past_key_values.0.key")
    seq = Squeeze(seq1) past = Squeeze(past1) total = Add(past, seq)
    rows = Range(past, total, one) columns = Range(zero, total, one) rows2 = Unsqueeze(rows, axis1)
    distance = Sub(rows2, columns) causal = GreaterOrEqual(distance, zero)
    counted = CumSum(attention_mask, one) counted4 = Unsqueeze(counted, axes12)
    {near}
    {real}
    near4 = Unsqueeze(near, axes01) real4 = Unsqueeze(real, axes12) seen = And(near4, real4)
    additive = Where(seen, none, lowest)
    distance_float = Cast<to=1>(distance)
"""


def feeds(arithmetic: Arithmetic, past: int, seq: int, padding: int = 0) -> dict[str, Array]:
    """Two rows, the second padded on the left."""
    mask = np.ones((2, past + seq), np.int64)
    mask[1, :padding] = 0
    made: dict[str, Array] = {"x": draw(2, seq, HIDDEN, seed=1), "attention_mask": mask}
    made |= {"input_ids": np.zeros((2, seq), np.int64)}
    made |= {"position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, past:]}
    for i in range(arithmetic.layers):
        for number, kind in enumerate(("key", "value")):
            array = draw(2, arithmetic.kv_heads, past, DIM, seed=10 * i + number)
            made[f"past_key_values.{i}.{kind}"] = array
    return made
