"""Three projections into one.

    q = MatMul(x, W_q) (+ b_q)
    k = MatMul(x, W_k) (+ b_k)     →     CachedAttention(MatMul(x, [W_q W_k W_v]) (+ b), …)
    v = MatMul(x, W_v) (+ b_v)

    or, with the value apart:     CachedAttention(Concat(MatMul(x, [W_q W_k]), MatMul(x, W_v)), …)

One matrix product reads the activations once and has more rows to share between threads. The weights are stacked
lazily. A value apart can be stored in more bits than queries and keys: that is two products and a copy of their rows.
Where a runtime normalizes queries and keys outside attention it needs them apart, so the pass leaves those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.graph.graph_query import copy_dtype, insert_before
from llmc.passes.graph.linear import Linear, linear_of, stack_linears
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order


@dataclass(frozen=True)
class PackQKV(FusionPass):
    """Pack query, key and value projections of each attention.

    Attributes:
        with_qk_norm: Pack where attention normalizes queries and keys, too.
        value_apart: The value's product stays one of its own.
    """

    what: ClassVar[str] = "qkv"
    # Projections feed attention only once the layouts between have cancelled.
    order = Order(needs=(Fact.LAYOUTS, Fact.WEIGHTS), ends=(Fact.NOTHING_DEAD,))
    with_qk_norm: bool = False
    value_apart: bool = False

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
        if not self.value_apart:
            packed = stack_linears(model.graph, node, linears, "qkv_proj")
        elif linears[2].x is not linears[0].x:
            raise NearMiss("its projections do not read the same input")
        else:
            packed = _beside(node, stack_linears(model.graph, node, linears[:2], "qk_proj"), linears[2].output)
        cached_attention.replace_call(node, {"query": packed, "key": None, "value": None}, {})


def _beside(node: ir.Node, query_key: ir.Value, value: ir.Value) -> ir.Value:
    """Queries, keys and values side by side."""
    made = query_key.producer()
    assert made is not None
    name = (made.name or "qk_proj").rpartition("/")[0].replace("qk_proj", "qkv_proj") + "/Concat"
    concat = ir.node("Concat", [query_key, value], {"axis": -1}, name=name)
    output = concat.outputs[0]
    copy_dtype(query_key, output)
    if query_key.shape is not None and value.shape is not None:
        widths = [shape[-1] for shape in (query_key.shape, value.shape)]
        width = sum(size for size in widths if isinstance(size, int))
        output.shape = ir.Shape([*list(query_key.shape)[:-1], width])
    insert_before(node, [concat])
    return output
