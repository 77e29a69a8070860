"""Nodes that together make one value.

In: a graph, and a stem for names. Out: nodes to insert, and what the last of them makes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.passes.graph.graph_query import small_initializer


class NodeBuilder:
    """Collects nodes; nothing is in the graph but the constants until :attr:`nodes` are inserted."""

    def __init__(self, graph: ir.Graph, stem: str) -> None:
        """Names begin with ``stem``."""
        self.graph, self.stem, self.nodes = graph, stem, list[ir.Node]()

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        shape: Sequence[int | str | None] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: int | float | Sequence[int],
    ) -> ir.Value:
        """The first output of a new node; ``shape`` and ``dtype`` are what is known of it."""
        node = ir.node(op_type, list(inputs), attributes, name=f"{self.stem}/{op_type}_{len(self.nodes)}")
        self.nodes.append(node)
        made = node.outputs[0]
        if shape is not None:
            made.shape = ir.Shape(list(shape))
        if dtype is not None:
            made.dtype = dtype
        return made

    def in_type_of(self, query: ir.Value | None, bias: ir.Value) -> ir.Value:
        """A float32 bias in the type that the kernel wants, which is the query's."""
        if query is None or query.dtype in {None, ir.DataType.FLOAT}:
            return bias
        return self.op("Cast", bias, to=int(query.dtype or ir.DataType.FLOAT))

    def constant(self, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
        """A constant of this value's own."""
        return small_initializer(self.graph, f"{self.stem}.{name}", np.asarray(array))

    def integers(self, *numbers: int) -> ir.Value:
        """A 1-D int64 constant that all who ask for the same numbers share."""
        name = "integers_" + "_".join(str(number).replace("-", "minus_") for number in numbers)
        return small_initializer(self.graph, name, np.asarray(numbers, np.int64))

    def integer(self, number: int) -> ir.Value:
        """An int64 scalar that all who ask for the same number share."""
        return small_initializer(self.graph, f"integer_{number}".replace("-", "minus_"), np.asarray(number, np.int64))
