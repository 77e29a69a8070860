"""Gated feed-forward blocks to llmc's own operator for the CPU.

act(gate) * up, [gate up] = Split(llmc.cpu::MatMulNBits(x))   →   llmc.cpu::GatedMatMulNBits(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu
from llmc.compiler.graph.operators.cpu import Activation
from llmc.passes.graph.graph_query import dims, integers, only_consumer, producer
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

ACTIVATIONS = {("com.microsoft", "QuickGelu"): Activation.SILU, ("", "Gelu"): Activation.GELU_TANH}
"""Operator -> what it is where its attributes say so, too."""


@dataclass(frozen=True)
class UseCpuGatedMatMul(FusionPass):
    """Take the activation and the product of a gated block into the projection before them."""

    what: ClassVar[str] = "gated"
    order = Order(needs=(Fact.CPU_PRODUCTS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every Split of a quantized product."""
        splits = [node for node in model.graph if node.op_type == "Split" and not node.domain]
        return [node for node in splits if cpu.MATMUL.is_call(producer(node.inputs[0]))]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace projection, split, activation and product by one node."""
        projection = producer(node.inputs[0])
        assert projection is not None
        if only_consumer(projection.outputs[0]) is not node:
            raise NearMiss("its projection is read elsewhere, too")
        if (reason := cpu.refused_halves(_sizes(node, projection.attributes.get_int("N", 0)))) is not None:
            raise NearMiss(reason)
        activation = only_consumer(node.outputs[0])
        code = ACTIVATIONS.get((activation.domain, activation.op_type)) if activation is not None else None
        if activation is None or code is None or not _computes(activation, code):
            raise NearMiss(f"{cpu.DOMAIN} has no {activation.op_type if activation else 'such activation'}")
        product = only_consumer(activation.outputs[0])
        if product is None or product.op_type != "Mul" or only_consumer(node.outputs[1]) is not product:
            raise NearMiss("its halves do not meet in one product")
        attributes = {name: attribute.value for name, attribute in projection.attributes.items()}
        new = cpu.GATED_MATMUL.make(
            cpu.MATMUL.arguments(projection),
            {**attributes, "activation": int(code)},
            num_outputs=len(projection.outputs),
            name=projection.name,
        )
        old = [product.outputs[0], *projection.outputs[1:]]
        made = [new.outputs[0], *new.outputs[1:]]
        nodes = [product, activation, node, projection]
        ir.convenience.replace_nodes_and_values(model.graph, product, nodes, [new], old, made)

    def finish(self, model: ir.Model) -> None:
        """Nodes moved to where the product was."""
        model.graph.sort()


def _sizes(split: ir.Node, width: int) -> list[int]:
    """Features of each part of a projection; a model's own Split may say how many parts instead.

    Raises:
        NearMiss: other axes than the last are split.
    """
    shape = dims(split.inputs[0])
    if split.attributes.get_int("axis", 0) not in {-1, len(shape) - 1 if shape else -1}:
        raise NearMiss("it does not split the last axis")
    if len(split.inputs) > 1 and split.inputs[1] is not None:
        return integers(split.inputs[1]) or []
    count = len(split.outputs)
    return [width // count] * count if width % count == 0 else []


def _computes(activation: ir.Node, code: Activation) -> bool:
    if code is Activation.SILU:
        return activation.attributes.get_float("alpha", 1.702) == 1.0
    return activation.attributes.get_string("approximate", "none") == "tanh"
