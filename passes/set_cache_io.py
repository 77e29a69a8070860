"""How the KV cache goes in and out.

    grow     past [batch, kv_heads, past, dim]      →  present [batch, kv_heads, total, dim]
    shared   past [batch, kv_heads, capacity, dim]  →  present [batch, kv_heads, capacity, dim], the same memory

Attention that writes into its cache works either way; the pass states in the graph's inputs and outputs which one
holds, and removes ``position_ids`` when the rotary embedding is inside attention and nothing else reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from llmc.compiler.errors import PassError
from llmc.passes.graph_pass import GraphPass, Tally

PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class SetCacheIO(GraphPass):
    """Name the cache's dimensions.

    Attributes:
        kind: ``grow`` or ``shared``.
    """

    kind: Literal["grow", "shared"]

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        """Set the third dimension of every past and present."""
        if self.kind == "shared" and not all(_writes_in_place(value) for value in model.graph.outputs):
            raise PassError("a shared cache needs attention that writes in place; lower the graph to a target first")
        past, present = ("capacity", "capacity") if self.kind == "shared" else ("past", "total")
        for values, prefix, length in ((model.graph.inputs, PAST, past), (model.graph.outputs, PRESENT, present)):
            for value in values:
                if value.name is not None and value.name.startswith(prefix) and value.shape is not None:
                    batch, heads, old, dim = list(value.shape)
                    if getattr(old, "value", old) != length:
                        value.shape = ir.Shape([batch, heads, length, dim])
                        tally.count("dimensions")
        unused = [v for v in model.graph.inputs if v.name == "position_ids" and not list(v.uses())]
        for value in unused:
            model.graph.inputs.remove(value)
            tally.count("unused inputs")


def _writes_in_place(output: ir.Value) -> bool:
    """Whether an output is none of the caches, or made by attention that a target has for itself."""
    node = output.producer()
    if node is None or not (output.name or "").startswith(PRESENT):
        return True
    return node.op_type == "GroupQueryAttention"
