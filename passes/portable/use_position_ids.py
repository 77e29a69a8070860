"""Learned and tabulated positions by row.

    Gather(table, Range(past, past + seq) + c)        →  Gather(table, position_ids + c)
    Slice(table, past + c, past + seq + c)            →  Gather(table, position_ids + c)

A model whose forward takes no positions counts them from the length of the cache, the same for every row, which is
wrong for every row of a padded batch but the longest. What it looks up is found by computing the indices for several
lengths: they depend on nothing but the lengths, and are the slots of the chunk, up to a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import POSITION_IDS
from llmc.compiler.base.errors import UnsupportedModelError
from llmc.passes.graph.graph_query import (
    constant,
    copy_dtype,
    dims,
    graph_input,
    insert_before,
    integers,
    is_weight,
    small_initializer,
)
from llmc.passes.graph.subgraph import slot_offset
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally, node_label
from llmc.passes.portable.spread_rows import Spread, apply_spread, plan_spread


@dataclass(frozen=True)
class UsePositionIds(GraphPass):
    """Look up positions by ``position_ids``."""

    order = Order(needs=(Fact.NAMED,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every lookup in a weight.

        Raises:
            UnsupportedModelError: a lookup is made into something that has no place for rows.
        """
        positions = graph_input(model, POSITION_IDS)
        if positions is None:
            return
        for node in list(model.graph):
            if node.domain or node.op_type not in {"Gather", "Slice"} or not is_weight(node.inputs[0]):
                continue
            offset = _offset(node)
            if offset is None:
                continue
            spread = plan_spread(node.outputs[0]) if len(dims(node.outputs[0]) or ()) == 2 else Spread()
            if spread.lost is not None:
                raise UnsupportedModelError(
                    f"{spread.lost.op_type} takes what {node_label(node)} looks up by positions that the model "
                    "counts, the same for all rows of a batch, which is wrong for padded rows; llmc cannot give each "
                    "row its own there yet"
                )
            _replace(model.graph, node, positions, offset)
            assert positions.shape is not None
            apply_spread(model.graph, spread, positions.shape[0])
            tally.count("positions")


def _offset(node: ir.Node) -> int | None:
    """What is added to a token's slot to find its row of the table; None when the lookup is another one."""
    table = dims(node.inputs[0])
    if table is None or len(table) != 2:
        return None
    if node.op_type == "Gather":
        if node.attributes.get_int("axis", 0) != 0 or constant(node.inputs[1]) is not None:
            return None
        values = [node.inputs[1]]
    else:
        axes, steps = (node.inputs[i] if len(node.inputs) > i else None for i in (3, 4))
        if (axes is not None and integers(axes) != [0]) or (steps is not None and integers(steps) != [1]):
            return None
        values = [node.inputs[1], node.inputs[2]]
        if all(constant(value) is not None for value in values):
            return None
    return slot_offset(values, partial(_rows, node.op_type))


def _rows(op_type: str, results: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    if op_type == "Slice":
        if any(result.size != 1 for result in results):
            return np.zeros(0, np.int64)
        start, stop = (int(result.reshape(-1)[0]) for result in results)
        return np.arange(start, max(start, min(stop, start + 1000)))
    indices = results[0]
    # [seq], or [1, seq] or [batch, seq] with equal rows.
    rows = indices.reshape(-1, indices.shape[-1]) if indices.ndim else indices.reshape(1, 1)
    return rows[0] if (rows == rows[0]).all() else np.zeros(0, np.int64)


def _replace(graph: ir.Graph, node: ir.Node, positions: ir.Value, offset: int) -> None:
    table, old = node.inputs[0], node.outputs[0]
    assert table is not None
    assert table.shape is not None
    index, nodes = positions, []
    if offset:
        constant_offset = small_initializer(graph, f"position_offset_{offset}", np.asarray(offset, np.int64))
        add = ir.node("Add", [positions, constant_offset], name=f"{node.name}/offset")
        copy_dtype(positions, add.outputs[0])
        add.outputs[0].shape = positions.shape
        nodes.append(add)
        index = add.outputs[0]
    gather = ir.node("Gather", [table, index], {"axis": 0}, name=node.name)
    new = gather.outputs[0]
    copy_dtype(old, new)
    assert positions.shape is not None
    new.shape = ir.Shape([positions.shape[0], positions.shape[1], table.shape[1]])
    insert_before(node, [*nodes, gather])
    old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
