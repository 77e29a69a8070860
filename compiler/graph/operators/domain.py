"""The llmc operator domain: its name, its version, and how a body is built.

In: standard ONNX operators, added one by one to a :class:`Body`.
Out: an ``onnx_ir.Function`` that is the operator's specification and runs on any ONNX runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

DOMAIN = "llmc"
VERSION = 1
OPSET = 23
"""Version of the standard operators that bodies and portable graphs are written in."""

Attribute = int | float | str | list[int] | ir.TensorProtocol


class Body:
    """Builds a function body: nodes in order, attributes passed by reference."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self._nodes: list[ir.Node] = []
        self.inputs = {name: ir.val(name) for name in inputs}

    def __getitem__(self, name: str) -> ir.Value:
        return self.inputs[name]

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Add a node with one output and return that output."""
        return self.add(ir.node(op_type, inputs, attributes))[0]

    def split(self, value: ir.Value, sizes: ir.Value, axis: int, count: int) -> Sequence[ir.Value]:
        """Add a Split node with ``count`` outputs."""
        return self.add(ir.node("Split", [value, sizes], {"axis": axis}, num_outputs=count))

    def split_evenly(self, value: ir.Value, axis: int, count: int) -> Sequence[ir.Value]:
        """Add a Split node with ``count`` outputs of equal size."""
        return self.add(ir.node("Split", [value], {"axis": axis, "num_outputs": count}, num_outputs=count))

    def add(self, node: ir.Node) -> Sequence[ir.Value]:
        """Add a node that was made elsewhere, as one with a graph for an attribute, and return its outputs."""
        self._nodes.append(node)
        return node.outputs

    def subgraph(self, name: str, outputs: Mapping[str, ir.Value]) -> ir.Graph:
        """Close the body as the graph of a control-flow node; what it makes gets names that no outer graph has."""
        for index, node in enumerate(self._nodes):
            node.name = f"{name}/{index}"
            for number, value in enumerate(node.outputs):
                value.name = f"{name}/{index}.{number}"
        return self._graph(outputs, name)

    def referring(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        refer: Mapping[str, tuple[str, ir.AttributeType]],
        **attributes: int,
    ) -> ir.Value:
        """Add a node whose attributes ``refer`` (own name -> function attribute) come from the call."""
        node = ir.node(op_type, list(inputs), attributes, num_outputs=1)
        for name, (source, kind) in refer.items():
            node.attributes.add(ir.RefAttr(name, source, kind))
        return self.add(node)[0]

    def integers(self, *names_or_values: str | int) -> ir.Value:
        """A 1-D int64 tensor whose elements are constants or integer attributes of the call."""
        parts = [
            self.referring("Constant", refer={"value_int": (item, ir.AttributeType.INT)})
            if isinstance(item, str)
            else self.op("Constant", value_int=item)
            for item in names_or_values
        ]
        axis = self.op("Constant", value_ints=[0])
        vectors = [self.op("Unsqueeze", part, axis) for part in parts]
        return vectors[0] if len(vectors) == 1 else self.op("Concat", *vectors, axis=0)

    def scalar_float(self, name: str) -> ir.Value:
        """A float32 scalar that is an attribute of the call."""
        return self.referring("Constant", refer={"value_float": (name, ir.AttributeType.FLOAT)})

    def function(
        self, name: str, overload: str, outputs: Mapping[str, ir.Value], attributes: Sequence[ir.Attr]
    ) -> ir.Function:
        """Close the body.

        Args:
            name: Operator name in the llmc domain.
            overload: Which variant of the operator this body specifies.
            outputs: Output name -> value, in order.
            attributes: Attributes of the call; one with a value has that default.
        """
        return ir.Function(DOMAIN, name, overload, graph=self._graph(outputs), attributes=list(attributes))

    def _graph(self, outputs: Mapping[str, ir.Value], name: str | None = None) -> ir.Graph:
        for output_name, value in outputs.items():
            value.name = output_name
        inputs, results = list(self.inputs.values()), list(outputs.values())
        return ir.Graph(inputs, results, nodes=self._nodes, opset_imports={"": OPSET}, name=name)
