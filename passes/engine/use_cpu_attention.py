"""Attention over a shared cache to llmc's own operator for the CPU.

com.microsoft::GroupQueryAttention(q, k, v, past, …, lengths, cos, sin)   →   llmc.cpu::GroupQueryAttention(…)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import FusionPass, NearMiss

SOURCE, DOMAIN = "com.microsoft", "llmc.cpu"
STEP, LARGEST_HEAD = 32, 256
QUERY_SEQLENS = 16
"""Position of that input in com.microsoft's operator."""


@dataclass(frozen=True)
class UseCpuAttention(FusionPass):
    """Replace attention whose past and present are one buffer."""

    what: ClassVar[str] = "attention"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every GroupQueryAttention over a shared cache."""
        nodes = [n for n in model.graph if n.op_type == "GroupQueryAttention" and n.domain == SOURCE]
        return [node for node in nodes if _is_shared(node)]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one attention."""
        given = [*node.inputs, *[None] * (QUERY_SEQLENS + 1 - len(node.inputs))]
        extra = [value for value in [*given[9:QUERY_SEQLENS], *given[QUERY_SEQLENS + 1 :]] if value is not None]
        if extra:
            raise NearMiss(f"the kernel does not take {', '.join(str(value.name) for value in extra)}")
        if node.attributes.get_float("softcap", 0.0):
            raise NearMiss("the kernel has no softcap")
        if node.attributes.get_int("rotary_interleaved", 0):
            raise NearMiss("the kernel rotates halves, not neighbours")
        head = (dims(given[3]) or [None])[-1]
        if not isinstance(head, int) or head % STEP or head > LARGEST_HEAD:
            raise NearMiss(
                f"the kernel takes head sizes that are multiples of {STEP} up to {LARGEST_HEAD}, not {head}"
            )
        attributes: dict[str, int | float] = {
            "num_heads": node.attributes.get_int("num_heads", 0),
            "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
            "local_window_size": max(0, node.attributes.get_int("local_window_size", 0)),
            "scale": node.attributes.get_float("scale", 0.0) or head**-0.5,
        }
        inputs = [*given[:6], given[QUERY_SEQLENS], *given[7:9]]
        while inputs[-1] is None:
            inputs.pop()
        new = ir.node("GroupQueryAttention", inputs, attributes, domain=DOMAIN, num_outputs=3, name=node.name)
        old = list(node.outputs)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], old, list(new.outputs))

    def finish(self, model: ir.Model) -> None:
        """Declare the domain."""
        model.graph.opset_imports.setdefault(DOMAIN, 1)


def _is_shared(node: ir.Node) -> bool:
    past, present = dims(node.inputs[3]), dims(node.outputs[1])
    return past is not None and present is not None and past[2] == present[2]
