"""Three projections into one.

    q = MatMul(x, W_q) (+ b_q)
    k = MatMul(x, W_k) (+ b_k)     →     CachedAttention(MatMul(x, [W_q W_k W_v]) (+ b), …)
    v = MatMul(x, W_v) (+ b_v)

One matrix product reads the activations once and has more rows to share between threads. The weights are stacked
lazily. Where a runtime normalizes queries and keys outside attention it needs them apart, so the pass leaves those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.graph.linear import Linear, linear_of, stack_linears
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class PackQKV(FusionPass):
    """Pack query, key and value projections of each attention.

    Attributes:
        with_qk_norm: Pack where attention normalizes queries and keys, too.
    """

    what: ClassVar[str] = "qkv"
    # Projections feed attention only once the layouts between have cancelled.
    order = Order(needs=(Fact.LAYOUTS, Fact.WEIGHTS), ends=(Fact.NOTHING_DEAD,))
    with_qk_norm: bool = False

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention whose query is not packed, less those that the target normalizes apart."""
        attentions = cached_attention.SIGNATURE.calls(model.graph)
        variants = [(node, cached_attention.variant_of(node)) for node in attentions]
        return [n for n, variant in variants if not variant.packed and (self.with_qk_norm or not variant.qk_norm)]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Pack one attention's projections."""
        linears: list[Linear] = []
        for name in ("query", "key", "value"):
            value = cached_attention.get_input(node, name)
            linear = linear_of(value)
            if linear is None:
                made_by = value.producer() if value is not None else None
                raise NearMiss(
                    f"its {name} comes from {made_by.op_type if made_by else 'an input'}, not a projection"
                )
            linears.append(linear)
        packed = stack_linears(model.graph, node, linears, "qkv_proj")
        cached_attention.replace_call(node, {"query": packed, "key": None, "value": None}, {})
