"""A small network with a layer of experts between a table and a head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.graph.operators import moe
from llmc.passes.cleanup.attach_bodies import AttachBodies
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.lower_moe import LowerMoE

from ...passes.graphs import parse

WIDTH, INNER, ROWS, EXPERTS, CHOSEN = 32, 64, 512, 4, 2
FC1, FC2, HEAD = "fc1", "fc2", "head"
TEXT = f"""small (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
       float[batch, 2, past, 4] "past_key_values.0.key")
 => (float[batch, sequence, {ROWS}] logits, float[batch, 2, past, 4] "present.0.key")
{{
  hidden = Gather("embed.weight", input_ids)
  flat = Reshape(hidden, flat_shape)
  scores = MatMul(flat, "router.weight")
  best, chosen = TopK(scores, k)
  shares = Softmax(best)
  mixed = llmc.MoE<activation="silu", gated=1>(flat, chosen, shares, fc1, fc2)
  shape = Shape(hidden)
  back = Reshape(mixed, shape)
  stream = Add(hidden, back)
  logits = MatMul(stream, "head.weight")
  "present.0.key" = Identity("past_key_values.0.key")
}}"""


def weights(seed: int = 0, mixing: float = 1.0) -> dict[str, Array]:
    """Random ones; what is looked up has correlated features, of which the router reads other mixtures.

    Args:
        seed: Of all.
        mixing: How strongly features depend on a few; 0: they do not.
    """
    generator = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return (generator.normal(size=shape) * scale).astype(np.float32)

    table = draw(ROWS, WIDTH, scale=0.3) + mixing * draw(ROWS, 4) @ draw(4, WIDTH)
    return {
        "embed.weight": table.astype(np.float32),
        "router.weight": draw(WIDTH, EXPERTS),
        "fc1": draw(EXPERTS, 2 * INNER, WIDTH, scale=0.2),
        "fc2": draw(EXPERTS, WIDTH, INNER, scale=0.2),
        "head.weight": draw(WIDTH, ROWS),
    }


def expert_model(given: dict[str, Array] | None = None) -> ir.Model:
    """The network as a target has it, before its weights are quantized."""
    constants = {"k": np.asarray([CHOSEN], np.int64), "flat_shape": np.asarray([-1, WIDTH], np.int64)}
    model = parse(TEXT, (weights() if given is None else given) | constants, lazy=True)
    for node in moe.SIGNATURE.calls(model.graph):
        node.outputs[0].dtype = ir.DataType.FLOAT
    AttachBodies()(model)
    LowerMoE()(model)
    RemoveDeadCode()(model)
    return model


def tokens(windows: int, length: int, first: int = 0, last: int = ROWS) -> Array:
    """[windows, length] int64 of a part of the vocabulary."""
    return np.random.default_rng(1).integers(first, last, (windows, length))


def halves(stack: Array) -> Array:
    """Rows of gate and upper product as the operator has them: in turns."""
    return np.ascontiguousarray(stack.reshape(EXPERTS, 2, INNER, WIDTH).swapaxes(1, 2)).reshape(stack.shape)


def routed(scores: Array) -> Array:
    """[tokens, experts]: the softmax over the chosen, 0 of others."""
    order = np.argsort(-scores, axis=1)[:, :CHOSEN]
    result = np.zeros_like(scores)
    best = np.take_along_axis(scores, order, 1)
    shares = np.exp(best - best.max(1, keepdims=True))
    np.put_along_axis(result, order, shares / shares.sum(1, keepdims=True), 1)
    return result


def behind(rows: Array, x: Array) -> Array:
    """What the second product reads: rows [2 * inner, width] in turns, x [tokens, width]."""
    products = x @ rows.T
    gate, upper = products[:, 0::2], products[:, 1::2]
    return np.asarray(gate / (1 + np.exp(-gate)) * upper)


def graph_feeds(ids: Array) -> dict[str, Array]:
    """Of rows of tokens behind nothing."""
    return {
        "input_ids": ids,
        "attention_mask": np.ones(ids.shape, np.int64),
        "past_key_values.0.key": np.zeros((len(ids), 2, 0, 4), np.float32),
    }
