"""The weights of a graph that may be quantized: linear layers, the head, embedding tables and experts.

In: a model. Out: a list of :class:`Site` in the order of the graph, the one for every plan, emitter and calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from llmc.compiler.graph.census import head_product
from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.operators.microsoft import MOE
from llmc.compiler.graph.operators.moe import is_moe
from llmc.compiler.quantization.plan import Placement, placement_of
from llmc.compiler.quantization.scheme import FLOAT
from llmc.passes.experts.routing_weights import chooses_experts
from llmc.passes.graph.graph_query import is_weight
from llmc.passes.graph.linear import product_weight, upright_weight
from llmc.passes.graph_pass import NearMiss
from llmc.passes.quantization.block_offsets import is_correction
from llmc.passes.quantization.cache_offsets import is_of_centres
from llmc.passes.quantization.site_roles import Role, find_roles

Kind = Literal["linear", "head", "embedding", "experts"]
LOOKUP_SIZE = 1 << 12
"""Elements from which a table that is looked up in counts as an embedding; others are shape arithmetic."""


@dataclass(frozen=True)
class Site:
    """A place where weights are used.

    Attributes:
        kind: ``linear``: a matrix product with a constant; ``head``: the one nearest to the logits; ``embedding``: a
            look-up in a table; ``experts``: a layer's, in ONNX Runtime's operator or, without weights, as its body.
        node: The product, look-up or operator.
        weights: Name and [out, in] rows of each, of a table [rows, width]; of experts two stacks [count, out, in].
        role: What a linear layer is for, where that can be told.
    """

    kind: Kind
    node: ir.Node
    weights: tuple[tuple[str, LazyWeight], ...]
    role: Role | None = None

    @property
    def name(self) -> str:
        """That of its first weight; the layer's, where the checkpoint names weights after layers."""
        return self.weights[0][0] if self.weights else self.node.name or ""

    def placement(self, plan: Mapping[str, str]) -> Placement:
        """What a plan says of it: by its name, else by its role, else by its kind."""
        keys = (self.name, f"{self.kind}:{self.role}", self.kind)
        text = next((plan[key] for key in keys if key in plan), FLOAT)
        return placement_of(text, self.weights[0][1].stored_shape[-1] if self.weights else None)


def find_sites(model: ir.Model, *, head: bool = True) -> list[Site]:
    """All sites; without ``head`` the product nearest to the logits is a linear layer like others."""
    sites = list(_sites(model, head_product(model.graph) if head else None))
    roles = find_roles(site.node for site in sites if site.kind == "linear")
    return [replace(site, role=roles.get(site.node)) for site in sites]


def _sites(model: ir.Model, head: ir.Node | None) -> Iterator[Site]:
    for node in model.graph:
        if MOE.is_call(node) or is_moe(node):
            stacks = [MOE.get(node, f"{fc}_experts_weights") for fc in ("fc1", "fc2") if MOE.is_call(node)]
            yield Site("experts", node, tuple(_named(value) for value in stacks if value is not None))
        elif node.domain or is_of_centres(node):
            continue
        elif node.op_type == "MatMul" and (weight := product_weight(node)) is not None:
            # A router is a small part of a layer, and a score that is rounded sends a token to another expert.
            if not is_correction(node) and not chooses_experts(node):
                name, rows = weight
                yield Site("head" if node is head else "linear", node, ((name.removesuffix(".weight"), rows),))
        elif node.op_type == "Gather" and (table := node.inputs[0]) is not None and is_weight(table):
            tensor = table.const_value
            if tensor is not None and len(tensor.shape) == 2 and tensor.size >= LOOKUP_SIZE:
                yield Site("embedding", node, (_named(table),))


def _named(value: ir.Value) -> tuple[str, LazyWeight]:
    name = value.name or "table"
    return name.removesuffix(".weight").removesuffix(".by_output"), upright_weight(value)


def require_blocks(features: int, block: int | None, what: str = "its {} input features are") -> None:
    """Refuse rows that end within a block.

    Raises:
        NearMiss: they do.
    """
    if block and features % block:
        raise NearMiss(f"{what.format(features)} no multiple of the block size {block}")
