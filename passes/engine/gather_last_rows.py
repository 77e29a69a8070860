"""Hidden states of each row's last token, found by a row number instead of a position in each row.

    h [batch, seq, hidden], last [batch]:  GatherND(h, last)   →   Gather(h as [batch * seq, hidden], last_rows)

``last_rows`` [batch] int64 is an input: ``row * seq + position of the row's last valid token``, which whoever feeds
the chunk knows. The CUDA provider's GatherND copies a small array from the host's stack to the device; recorded in a
CUDA graph, that copy would read memory that is no longer there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.base.contract import LAST_ROWS
from llmc.passes.graph.graph_query import copy_dtype, dims, integers, producer, replace_node, small_initializer
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class GatherLastRows(FusionPass):
    """Replace the look-up that LastTokenLogits made."""

    what: ClassVar[str] = "last_rows"
    order = Order(ends=(Fact.NOTHING_DEAD,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every GatherND of one position per row."""
        return [
            node
            for node in model.graph
            if node.op_type == "GatherND" and not node.domain and node.attributes.get_int("batch_dims", 0) == 1
        ]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one look-up."""
        hidden, index = node.inputs
        shape = dims(hidden)
        if hidden is None or shape is None or len(shape) != 3 or not isinstance(shape[2], int):
            raise NearMiss("what it looks up in is not [batch, seq, hidden] of a known width")
        position = producer(index, "Unsqueeze")
        if position is None or integers(position.inputs[1]) != [1, 2]:
            raise NearMiss("it does not look up one position per row")
        graph = model.graph
        rows = next((value for value in graph.inputs if value.name == LAST_ROWS), None)
        if rows is None:
            rows = ir.Value(name=LAST_ROWS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
            graph.inputs.append(rows)
        flat = small_initializer(graph, f"shape_all_{shape[2]}", np.asarray([-1, shape[2]], np.int64))
        axis = small_initializer(graph, "axis_1", np.asarray([1], np.int64))
        stem = (node.name or "last_rows").rsplit("/", 1)[0]
        by_row = ir.node("Reshape", [hidden, flat], name=f"{stem}/rows")
        gather = ir.node("Gather", [by_row.outputs[0], rows], {"axis": 0}, name=f"{stem}/Gather")
        upright = ir.node("Unsqueeze", [gather.outputs[0], axis], name=f"{stem}/Unsqueeze_rows")
        for made, form in ((by_row, [None, shape[2]]), (gather, [hidden.shape[0], shape[2]])):  # type: ignore[index]
            copy_dtype(hidden, made.outputs[0])
            made.outputs[0].shape = ir.Shape(form)
        replace_node(node, [by_row, gather, upright], upright.outputs)
