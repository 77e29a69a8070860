"""A small network with everything that calibration meets: a table, groups, a shared table, a residual stream."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
small (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
       float[batch, 2, past, 4] "past_key_values.0.key")
 => (float[batch, sequence, 128] logits, float[batch, 2, past, 4] "present.0.key")
{
  shape = Shape(attention_mask)
  first = Cast<to=1>(attention_mask)
  ones = ReduceMean<keepdims=1>(first)
  table_rows = Gather("embed.weight", input_ids)
  hidden = Mul(table_rows, ones)
  left = MatMul(hidden, "left.weight")
  unused = Exp(left)
  right = MatMul(hidden, "right.weight")
  gate = Sigmoid(left)
  product = Mul(gate, right)
  down = MatMul(product, "down.weight")
  stream = Add(hidden, down)
  turned = Transpose<perm=[1, 0]>("embed.weight")
  logits = MatMul(stream, turned)
  "present.0.key" = Identity("past_key_values.0.key")
}"""
WIDTH, INNER, ROWS = 32, 64, 128
LEFT, RIGHT, DOWN = "left", "right", "down"


def small_model(seed: int = 0) -> ir.Model:
    """The network, with random weights."""
    generator = np.random.default_rng(seed)
    shapes = {
        "embed.weight": (ROWS, WIDTH),
        "left.weight": (WIDTH, INNER),
        "right.weight": (WIDTH, INNER),
        "down.weight": (INNER, WIDTH),
    }
    names = ", ".join(f'float[1] "{name}" = {{0}}' for name in shapes)
    model = ir.from_onnx_text(TEXT.replace("\n{", f"\n<{names}>\n{{", 1))
    for name, shape in shapes.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(generator.normal(size=shape).astype(np.float32), name=name)
        value.shape = ir.Shape(shape)
    return model


def tokens(windows: int, length: int) -> np.ndarray:
    """[windows, length] int64."""
    return np.random.default_rng(1).integers(0, ROWS, (windows, length))
