"""RMSNorm of each query and key head into attention.

    q = RMSNormalization(q₀ by head, w_q)
    k = RMSNormalization(k₀ by head, w_k)      →      CachedAttention(q₀, k₀, …, w_q, w_k)
    CachedAttention(q, k, …)

It runs after the rotary embedding has moved inside, because attention normalizes first and rotates then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.attention.attention_paths import query_and_key, read_before, rms_norm
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class FuseQKNorm(FusionPass):
    """Move the norms of queries and keys inside attention."""

    what: ClassVar[str] = "qk_norm"
    # The rotation lies between the norms and attention.
    order = Order(needs=(Fact.ROTATIONS,), ends=(Fact.LAYOUTS,))

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention, in a graph that normalizes heads."""
        nodes = list(model.graph)
        if not any(node.op_type == "RMSNormalization" and _is_by_head(node) for node in nodes):
            return []
        attentions = cached_attention.SIGNATURE.calls(model.graph)
        return [n for n in attentions if not (v := cached_attention.variant_of(n)).qk_norm and not v.packed]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Move the two norms of one attention inside."""
        paths = [path for _, path in query_and_key(node)]
        q_norm, k_norm = (None if path.merged else rms_norm(path.value) for path in paths)
        if q_norm is None and k_norm is None:
            raise NearMiss("neither its query nor its key is normalized, as those of other layers are")
        if q_norm is None or k_norm is None:
            raise NearMiss("only one of its query and key is normalized")
        q_epsilon, k_epsilon = (norm.attributes.get_float("epsilon", 1e-5) for norm in (q_norm, k_norm))
        if q_epsilon != k_epsilon:
            raise NearMiss(f"its query and key are normalized with different epsilons, {q_epsilon} and {k_epsilon}")
        inputs = read_before(node, (q_norm, k_norm), [path.heads_first for path in paths])
        inputs |= {"q_norm_weight": q_norm.inputs[1], "k_norm_weight": k_norm.inputs[1]}
        cached_attention.replace_call(node, inputs, {"norm_epsilon": q_epsilon})


def _is_by_head(norm: ir.Node) -> bool:
    shape = norm.outputs[0].shape
    return shape is not None and len(shape) == 4
