"""An operator's inputs and outputs by name.

In: nodes, and names as the operator's schema has them. Out: the values at these places; new calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir


@dataclass(frozen=True)
class Signature:
    """What an operator calls its inputs and outputs.

    Attributes:
        domain: Its domain; empty for ONNX's own.
        name: Its type.
        inputs: In order; a call may leave out the optional ones.
        outputs: In order, likewise.
    """

    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ("output",)

    def is_call(self, node: ir.Node | None) -> bool:
        """Whether ``node`` calls this operator."""
        return node is not None and node.op_type == self.name and node.domain == self.domain

    def calls(self, graph: ir.Graph) -> list[ir.Node]:
        """The graph's calls of this operator, in order."""
        return [node for node in graph if self.is_call(node)]

    def get(self, node: ir.Node, name: str) -> ir.Value | None:
        """The call's input called ``name``, or None when it is absent."""
        index = self.inputs.index(name)
        return node.inputs[index] if index < len(node.inputs) else None

    def arguments(self, node: ir.Node) -> dict[str, ir.Value | None]:
        """Every input of a call by name, None where it is absent."""
        return {name: self.get(node, name) for name in self.inputs}

    def result(self, node: ir.Node, name: str) -> ir.Value:
        """The call's output called ``name``."""
        return node.outputs[self.outputs.index(name)]

    def make(self, inputs: Mapping[str, ir.Value | None], attributes: Mapping[str, Any], **node: Any) -> ir.Node:
        """A call.

        Args:
            inputs: By name; what is left out is absent.
            attributes: Python values or onnx_ir's attributes.
            node: What else :func:`onnx_ir.node` takes, as ``name`` and ``num_outputs``.

        Raises:
            ValueError: the operator has no input of a name.
        """
        if unknown := set(inputs) - set(self.inputs):
            raise ValueError(f"{self.name} has no input {sorted(unknown)}")
        values = [inputs.get(name) for name in self.inputs]
        while values and values[-1] is None:
            values.pop()
        return ir.node(self.name, values, attributes, domain=self.domain, **node)
