"""How the KV cache goes in and out.

    grow     past [batch, kv_heads, past, dim]      →  present [batch, kv_heads, total, dim]
    shared   past [batch, kv_heads, capacity, dim]  →  present [batch, kv_heads, capacity, dim], the same memory

Attention that writes into its cache works either way; the pass states in the graph's inputs and outputs which one
holds (``grow`` where some attention was not lowered), and removes ``position_ids`` when the rotary embedding is
inside attention and nothing else reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.base.contract import PAST, POSITION_IDS, PRESENT, CacheKind
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import Fact, GraphPass, Order, Tally

IN_PLACE = frozenset({"GroupQueryAttention", "TensorScatter"})
"""Operators that can write a chunk into the buffer in which the past lies."""


@dataclass(frozen=True)
class SetCacheIO(GraphPass):
    """Name the cache's dimensions.

    Attributes:
        kind: ``grow`` or ``shared``.
    """

    kind: CacheKind

    # Only attention that is lowered can write into a shared cache.
    order = Order(needs=(Fact.ATTENTION,))

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Set the third dimension of every past and present key and value; states keep their shape."""
        kind = self.kind
        if kind == "shared" and (outside := _made_outside(model)):
            # The graph stays right with a cache that grows; only a target's own attention writes in place.
            kind = "grow"
            node = outside[0].producer()
            assert node is not None
            tally.reject(node, f"it makes {outside[0].name} and does not write in place, so the cache grows")
        past, present = ("capacity", "capacity") if kind == "shared" else ("past", "total")
        for values, prefix, length in ((model.graph.inputs, PAST, past), (model.graph.outputs, PRESENT, present)):
            for value in values:
                if _is_key_or_value(value, prefix) and value.shape is not None:
                    batch, heads, old, dim = list(value.shape)
                    if getattr(old, "value", old) != length:
                        value.shape = ir.Shape([batch, heads, length, dim])
                        tally.count("dimensions")
        keys_and_values = any(_is_key_or_value(value, PAST) for value in model.graph.inputs)
        tally.state(cache=kind if keys_and_values else "shared")
        unused = [v for v in model.graph.inputs if v.name == POSITION_IDS and not list(v.uses())]
        for value in unused:
            model.graph.inputs.remove(value)
            tally.count("unused inputs")


def _is_key_or_value(value: ir.Value, prefix: str) -> bool:
    name = value.name or ""
    return name.startswith(prefix) and name.endswith((".key", ".value"))


def _grows(value: ir.Value) -> bool:
    """Whether a tensor of the cache has an axis with a slot per token; a state has none."""
    return not all(isinstance(dim, int) for dim in (dims(value) or [None, None])[1:])


def _made_outside(model: ir.Model) -> list[ir.Value]:
    """Outputs of the cache that grow by the chunk and are not made by attention that a target has for itself."""
    growing = {
        PRESENT + value.name.removeprefix(PAST)
        for value in model.graph.inputs
        if value.name and value.name.startswith(PAST) and _grows(value)
    }
    outputs = [(value, value.producer()) for value in model.graph.outputs if value.name in growing]
    return [value for value, node in outputs if node is not None and node.op_type not in IN_PLACE]
