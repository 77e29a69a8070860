"""Logits of each row's last token only.

    logits = head(h)           h [batch, seq, hidden]
                               →   logits = head(h at each row's last valid position)      [batch, 1, vocab]

Of a 128-token prompt and a vocabulary of 49k, the output projection over all positions is most of the prefill.
The last valid position of a right-padded chunk is the number of ones in the last ``seq`` columns of the mask, less 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import LOGITS, ContractPart
from llmc.passes.graph.chunk_lengths import chunk_lengths
from llmc.passes.graph.graph_query import constant, copy_dtype, dims, is_weight, small_initializer
from llmc.passes.graph_pass import FusionPass, NearMiss

ELEMENTWISE = {"Div", "Mul", "Tanh", "Cast", "Identity", "Add", "Sub", "Where"}


@dataclass(frozen=True)
class LastTokenLogits(FusionPass):
    """Cut the hidden states before the output projection."""

    what: ClassVar[str] = "logits"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """The node that makes the logits, unless they are cut already."""
        logits = _logits(model)
        head, shape = logits.producer(), dims(logits)
        return [] if head is None or (shape is not None and shape[1] == 1) else [head]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Put a GatherND before the output projection."""
        _cut(model, _projection(node), _logits(model))

    def states(self) -> ContractPart:
        """One row of logits a sequence."""
        return {"logits": "last"}


def _logits(model: ir.Model) -> ir.Value:
    return next(value for value in model.graph.outputs if value.name == LOGITS)


def _projection(node: ir.Node) -> ir.Node:
    """Up from the logits through what is computed element by element to the matrix product."""
    while node.op_type != "MatMul":
        if node.op_type not in ELEMENTWISE or node.domain:
            raise NearMiss(f"the logits come from {node.op_type}, not from a matrix product")
        inputs = [v for v in node.inputs if v is not None and not is_weight(v) and constant(v) is None]
        if len(inputs) != 1 or (maker := inputs[0].producer()) is None:
            raise NearMiss(f"{node.op_type} after the output projection joins several values")
        node = maker
    return node


def _cut(model: ir.Model, projection: ir.Node, logits: ir.Value) -> None:
    graph = model.graph
    hidden = projection.inputs[0]
    shape = dims(hidden)
    if hidden is None or shape is None or len(shape) != 3:
        raise NearMiss("the hidden states before the output projection are not [batch, seq, hidden]")
    one = small_initializer(graph, "one", np.asarray(1, np.int64))
    zero = small_initializer(graph, "zero", np.asarray(0, np.int64))
    axes = small_initializer(graph, "axes_1_2", np.asarray([1, 2], np.int64))
    lengths, nodes = chunk_lengths(model)
    last = ir.node("Sub", [lengths, one], name="last_token/Sub")
    valid = ir.node("Max", [last.outputs[0], zero], name="last_token/Max")
    index = ir.node("Unsqueeze", [valid.outputs[0], axes], name="last_token/Unsqueeze")
    cut = ir.node("GatherND", [hidden, index.outputs[0]], {"batch_dims": 1}, name="last_token/GatherND")
    graph.insert_before(projection, [*nodes, last, valid, index, cut])
    copy_dtype(hidden, cut.outputs[0])
    batch, width = hidden.shape[0], hidden.shape[2]  # type: ignore[index]
    cut.outputs[0].shape = ir.Shape([batch, 1, width])
    projection.replace_input_with(0, cut.outputs[0])
    value: ir.Value | None = projection.outputs[0]
    while value is not None:
        value.shape = ir.Shape([batch, 1, logits.shape[2] if logits.shape is not None else None])
        if value is logits:
            break
        users = list(value.uses())
        value = users[0].node.outputs[0] if users else None
