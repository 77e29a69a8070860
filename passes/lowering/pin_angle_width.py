"""The width of rotary angles as a number.

    RotaryEmbedding(x, cos, sin; interleaved = 1)
        →   RotaryEmbedding(x, Reshape(cos, [0, 0, width]), Reshape(sin, [0, 0, width]); interleaved = 1)

OpenVINO's ONNX reader refuses angles whose width it does not infer. That is so where a model repeats each angle and
takes every second one again, as those with interleaved rotation do.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.passes.graph.graph_query import copy_dtype, dims, integers, producer
from llmc.passes.graph.node_builder import NodeBuilder
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

COS, SIN = 1, 2


@dataclass(frozen=True)
class PinAngleWidth(GraphPass):
    """State the width of the angles [batch, seq, width] that an interleaved rotation takes."""

    # Simplifying would take a layout that changes nothing away.
    order = Order(needs=(Fact.LAYOUTS,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Visit every rotation; those that take the same angles share the new nodes."""
        pinned: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            if node.op_type != "RotaryEmbedding" or node.domain or not node.attributes.get_int("interleaved", 0):
                continue
            for index in (COS, SIN):
                angles = node.inputs[index]
                if angles is None or (width := _width(angles)) is None or _is_pinned(angles):
                    continue
                if angles not in pinned:
                    make = NodeBuilder(model.graph, angles.name or "angles")
                    pinned[angles] = make.op("Reshape", angles, make.integers(0, 0, width))
                    pinned[angles].shape = angles.shape
                    copy_dtype(angles, pinned[angles])
                    model.graph.insert_before(node, make.nodes)
                node.replace_input_with(index, pinned[angles])
                tally.count("angles")


def _width(angles: ir.Value) -> int | None:
    shape = dims(angles)
    return shape[-1] if shape is not None and len(shape) == 3 and isinstance(shape[-1], int) else None


def _is_pinned(angles: ir.Value) -> bool:
    """Whether a Reshape to [0, 0, a number] made them."""
    made = producer(angles, "Reshape")
    target = integers(made.inputs[1]) if made is not None else None
    return target is not None and len(target) == 3 and target[:2] == [0, 0] and target[2] > 0
