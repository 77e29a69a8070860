"""Experts to ONNX Runtime.

    llmc::MoE(hidden, indices, weights, fc1, fc2)
        →  com.microsoft::MoE(hidden, log of the weights by expert, fc1, fc2) * (sum of the weights)

The runtime's operator routes by itself: it takes the k largest of its ``router_probs`` and weighs them by the softmax
over these. The logarithm of the weights, spread over all experts and very negative where none was chosen, makes it
choose what the router chose and weigh it by weight / sum of weights, whatever the router was. A row of zeros stays
right, too: its sum is 0. Weights below 0 have no logarithm, so the graph must show that there are none.

Accepted is what the CPU kernel of ONNX Runtime 1.32 was measured to compute within 1e-6 of the largest output: the
activations of :data:`PLAIN`, and silu gates of any alpha, beta and limit whose rows alternate in ``fc1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from llmc.compiler.graph.lazy_weight import Array, MappedWeight
from llmc.compiler.graph.operators import moe
from llmc.compiler.graph.operators.microsoft import MOE
from llmc.passes.experts.routing_weights import is_nonnegative, sums_to_one
from llmc.passes.graph.graph_query import (
    add_initializer,
    copy_dtype,
    dims,
    is_weight,
    replace_node,
    small_initializer,
)
from llmc.passes.graph.linear import upright_weight
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

PLAIN = {"relu": "relu", "silu": "silu", "gelu_tanh": "gelu", "identity": "identity"}
"""Activation without a gate -> the kernel's name for it; its gelu is the one by tanh."""
NOT_CHOSEN = -1e30
"""Logit of an expert that was not chosen: its exponential is 0 beside any weight's."""


@dataclass(frozen=True)
class LowerMoE(FusionPass):
    """Replace each ``llmc::MoE``.

    Attributes:
        kernel: The runtime's CPU provider has the operators as they were measured.
    """

    kernel: bool = True

    what: ClassVar[str] = "experts"
    domain: ClassVar[str] = MOE.domain
    order = Order(needs=(Fact.FLOAT32, Fact.WEIGHTS), gives=(Fact.EXPERTS,), ends=(Fact.NOTHING_DEAD,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every layer's experts."""
        return moe.SIGNATURE.calls(model.graph)

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Lower one layer's experts; their weights are rearranged where the kernel has another layout."""
        given = moe.SIGNATURE.arguments(node)
        variant = moe.variant_of(node)
        chosen = self._require_kernel(given, variant, node)
        graph, transpose = model.graph, variant.transposed
        halves = variant.gated and not variant.interleaved
        fc1, fc2 = given["fc1"], given["fc2"]
        assert fc1 is not None
        assert fc2 is not None
        bias = given["fc1_bias"]
        inputs = {
            "input": given["hidden"],
            "fc1_experts_weights": _rearranged(graph, fc1, transpose=transpose, interleave=halves),
            "fc1_experts_bias": bias and _rearranged(graph, bias, transpose=False, interleave=halves),
            "fc2_experts_weights": _rearranged(graph, fc2, transpose=transpose, interleave=False),
            "fc2_experts_bias": given["fc2_bias"],
        }
        nodes, inputs["router_probs"], total = _routing(graph, node, given)
        new = MOE.make(inputs, _attributes(node, variant, chosen), name=node.name)
        nodes.append(new)
        if total is not None:
            nodes.append(ir.node("Mul", [new.outputs[0], total], name=f"{node.name}/Mul"))
            copy_dtype(node.outputs[0], new.outputs[0])
            new.outputs[0].shape = node.outputs[0].shape
        replace_node(node, nodes, nodes[-1].outputs)

    def _require_kernel(self, given: Mapping[str, ir.Value | None], variant: moe.Variant, node: ir.Node) -> int:
        """How many experts a token has; raises NearMiss where the kernel cannot compute what the call asks for."""
        if not self.kernel:
            raise NearMiss("the installed ONNX Runtime does not have the operator as it was measured")
        if variant.gated and variant.activation != "silu":
            raise NearMiss(f"the kernel has no gate with {variant.activation}")
        if not variant.gated and variant.activation not in PLAIN:
            raise NearMiss(f"the kernel has no activation {variant.activation}")
        if not variant.gated and node.attributes.get_float("alpha", 1.0) != 1.0:
            raise NearMiss("the kernel's silu without a gate has no alpha")
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            raise NearMiss("its activations are not float32")
        weights = [given.get(name) for name in ("fc1", "fc2", *(("fc1_bias", "fc2_bias") if variant.biases else ()))]
        if not all(value is not None and is_weight(value) and _is_static(value) for value in weights):
            raise NearMiss("its weights are no constants of a known shape")
        chosen = (dims(given["indices"]) or [None])[-1]
        if not isinstance(chosen, int):
            raise NearMiss("how many experts a token has is not known")
        if not is_nonnegative(given["weights"]):
            raise NearMiss("its routing weights may be negative, and then have no logarithm")
        return chosen


def _is_static(value: ir.Value) -> bool:
    shape = dims(value)
    return shape is not None and all(isinstance(dim, int) for dim in shape)


def _attributes(node: ir.Node, variant: moe.Variant, chosen: int) -> dict[str, int | float | str]:
    attributes: dict[str, int | float | str] = {"k": chosen, "normalize_routing_weights": 1}
    if not variant.gated:
        return {**attributes, "activation_type": PLAIN[variant.activation]}
    given = node.attributes
    attributes |= {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": given.get_float("alpha", 1.0),
        "activation_beta": given.get_float("beta", 0.0),
    }
    if variant.limited:
        attributes["swiglu_limit"] = given.get_float("limit", 0.0)
    return attributes


def _routing(
    graph: ir.Graph, node: ir.Node, given: Mapping[str, ir.Value | None]
) -> tuple[list[ir.Node], ir.Value, ir.Value | None]:
    """The nodes that make router_probs [tokens, experts] and, unless it is known to be 1, each row's sum [tokens, 1].

    An expert that is chosen twice gets the sum of its weights, as in the operator's definition.
    """
    weights, fc1 = given["weights"], given["fc1"]
    experts = (dims(fc1) or [None])[0]
    assert isinstance(experts, int)

    def make(op_type: str, *inputs: ir.Value | None, **attributes: int | str | ir.TensorProtocol) -> ir.Value:
        nodes.append(ir.node(op_type, list(inputs), attributes, name=f"{node.name}/{op_type}"))
        return nodes[-1].outputs[0]

    nodes: list[ir.Node] = []
    count = small_initializer(graph, f"size_{experts}", np.asarray([experts], np.int64))
    lowest = small_initializer(graph, "not_chosen", np.asarray(NOT_CHOSEN, np.float32))
    shape = make("Concat", make("Shape", given["hidden"], start=0, end=1), count, axis=0)
    zeros = make("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, np.float32)))
    by_expert = make("ScatterElements", zeros, given["indices"], weights, axis=1, reduction="add")
    logits = make("Max", make("Log", by_expert), lowest)
    if sums_to_one(weights):
        return nodes, logits, None
    axis = small_initializer(graph, "axis_1", np.asarray([1], np.int64))
    return nodes, logits, make("ReduceSum", weights, axis, keepdims=1)


def _rearranged(graph: ir.Graph, value: ir.Value, *, transpose: bool, interleave: bool) -> ir.Value:
    """An initializer [experts, rows, features], or [experts, rows], in the kernel's layout; read when it is written.

    Args:
        graph: Gets a new initializer; none when nothing is asked for.
        value: The initializer.
        transpose: Swap the last two axes.
        interleave: Let the rows of the two halves of axis 1 alternate, after that.
    """
    if not transpose and not interleave:
        return value
    base = upright_weight(value)
    count, *axes = base.stored_shape
    shape = (count, *(axes[::-1] if transpose else axes))

    def rearrange(experts: Array) -> Array:
        turned = experts.swapaxes(1, 2) if transpose else experts
        if not interleave:
            return turned
        halves = turned.reshape(len(experts), 2, shape[1] // 2, *shape[2:])
        return np.ascontiguousarray(halves.swapaxes(1, 2))

    stem = (value.name or "experts").removesuffix(".weight").removesuffix(".by_output")
    key = ("experts", "transpose" if transpose else "", "interleave" if interleave else "")
    made = MappedWeight(base, shape, base.dtype, rearrange, key)
    return add_initializer(graph, f"{stem}.by_output", made)
