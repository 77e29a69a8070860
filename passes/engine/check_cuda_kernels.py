"""Names what ONNX Runtime's CUDA provider does not run.

In: a target graph. Out: the same graph; a near miss for every node that would run on the CPU, its inputs copied there
and its outputs back, which stops the launches of a whole step from being recorded as one.

What the provider has was recorded on a GPU from the runtime itself: for each operator the element types with which a
graph of that one node was placed on the GPU. Shapes are computed on the CPU by design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from llmc.compiler.base.json_record import LEFT_OUT
from llmc.passes.graph_pass import Fact, GraphPass, GraphPassResult, Order, Tally

SHAPES = frozenset({"Shape", "Size"})
KEY_INPUT = {"Where": 1}
"""Input whose type decides which kernel runs, where it is not the first."""
TABLE_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
"""Element types that the table calls as NumPy does."""
HOST_TYPES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


@dataclass(frozen=True)
class CheckCudaKernels(GraphPass):
    """Report nodes without a kernel; changes nothing.

    Attributes:
        kernels: Operator -> element types of its first input that is data, as ``float16``.
        unknown: Operators about which the runtime could not be asked.
    """

    kernels: Mapping[str, frozenset[str]] = field(default_factory=dict, metadata=LEFT_OUT)
    unknown: frozenset[str] = field(default=frozenset(), metadata=LEFT_OUT)

    order = Order(needs=(Fact.OWN_NAMES,))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass; what it counts is no change."""
        tally = Tally()
        self.rewrite(model, tally)
        return GraphPassResult(model, modified=False, tally=tally)

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Compare each node with the table."""
        known = self.kernels
        on_host = _host_values(model.graph)
        for node in model.graph:
            if node in on_host or node.op_type in SHAPES:
                continue
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            dtype = _element_type(node)
            tally.expected["gpu"] = tally.expected.get("gpu", 0) + 1
            if name in self.unknown:
                tally.reject(node, f"it is not known whether the CUDA provider has {name}")
            elif name not in known:
                tally.reject(node, f"the CUDA provider has no {name}, so it would run on the CPU")
            elif dtype is not None and dtype not in known[name]:
                types = ", ".join(sorted(known[name]))
                tally.reject(node, f"the CUDA provider's {name} takes {types}, not {dtype}: it would run on the CPU")
            else:
                tally.count("gpu")


def _element_type(node: ir.Node) -> str | None:
    index = KEY_INPUT.get(node.op_type, 0)
    value = next((value for value in node.inputs[index:] if value is not None), None)
    dtype = value.dtype if value is not None else (node.outputs[0].dtype if node.outputs else None)
    if dtype is None:
        return None
    return TABLE_NAMES.get(dtype, dtype.name.lower())


def _host_values(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that compute with shapes alone: the runtime keeps them on the CPU, and they run once per recording."""
    found: set[ir.Node] = set()
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None and not value.is_initializer()]
        from_shapes = bool(makers) and all(
            maker is not None and (maker.op_type in SHAPES or maker in found) for maker in makers
        )
        if from_shapes and all(output.dtype in {*HOST_TYPES, None} for output in node.outputs):
            found.add(node)
    return found
