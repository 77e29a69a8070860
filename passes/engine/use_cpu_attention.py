"""Attention over a shared cache to llmc's own operator for the CPU.

com.microsoft::GroupQueryAttention(query, key, value, …)     →   llmc.cpu::GroupQueryAttention(query, key, value, …)
com.microsoft::GroupQueryAttention(Concat(qk, value), …)     →   llmc.cpu::GroupQueryAttention(qk, , value, …)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.graph.operators import cpu
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION
from llmc.passes.graph.graph_query import dims, producer, replace_node
from llmc.passes.graph_pass import FusionPass, NearMiss

_TAKEN = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "query_seqlens", "cos_cache", "sin_cache")
PLACES = dict(zip(_TAKEN, cpu.ATTENTION.inputs, strict=True))
"""Input of com.microsoft's operator -> of llmc.cpu's."""
UNUSED = "total_sequence_length"
LACKING = {"softcap": "softcap", "smooth_softmax": "smooth softmax", "rotary_interleaved": "rotation of neighbours"}
"""Attribute -> what the operator lacks where it is positive."""


@dataclass(frozen=True)
class UseCpuAttention(FusionPass):
    """Replace attention whose past and present are one buffer."""

    what: ClassVar[str] = "attention"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every GroupQueryAttention over a shared cache."""
        return [node for node in GROUP_QUERY_ATTENTION.calls(model.graph) if _is_shared(node)]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Replace one attention."""
        arguments = GROUP_QUERY_ATTENTION.arguments(node)
        head = (dims(arguments["past_key"]) or [None])[-1]
        _refuse(node, head)
        assert isinstance(head, int)
        rotary = node.attributes.get_int("do_rotary", 0)
        inputs = {PLACES[name]: value for name, value in arguments.items() if name in PLACES}
        attributes: dict[str, int | float] = {
            "num_heads": node.attributes.get_int("num_heads", 0),
            "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
            "local_window_size": max(0, node.attributes.get_int("local_window_size", 0)),
            "scale": node.attributes.get_float("scale", 0.0) or head**-0.5,
        }
        inputs |= {} if rotary else {"cos": None, "sin": None}
        inputs |= _value_apart(node, head)
        new = cpu.ATTENTION.make(inputs, attributes, num_outputs=3, name=node.name)
        replace_node(node, [new], new.outputs)

    def finish(self, model: ir.Model) -> None:
        """Declare the domain."""
        model.graph.opset_imports.setdefault(cpu.DOMAIN, cpu.VERSION)


def _value_apart(node: ir.Node, head: int) -> dict[str, ir.Value | None]:
    """Query and value where a Concat puts queries and keys, and values of one width, side by side; else nothing."""
    query, key, value = (GROUP_QUERY_ATTENTION.get(node, name) for name in ("query", "key", "value"))
    concat = producer(query, "Concat")
    if concat is None or key is not None or value is not None or len(concat.inputs) != 2:
        return {}
    axis, shape = concat.attributes.get_int("axis", 0), dims(concat.inputs[1])
    width = node.attributes.get_int("kv_num_heads", 0) * head
    if axis not in {-1, 2} or shape is None or len(shape) != 3 or shape[2] != width:
        return {}
    return {"query": concat.inputs[0], "value": concat.inputs[1]}


def _refuse(node: ir.Node, head: int | str | None) -> None:
    """Refuse what the operator does not compute.

    Raises:
        NearMiss: the node does.
    """
    names = dict(enumerate(GROUP_QUERY_ATTENTION.inputs))
    inputs = [names.get(place, str(value.name)) for place, value in enumerate(node.inputs) if value is not None]
    if more := [name for name in inputs if name not in {*PLACES, UNUSED}]:
        raise NearMiss(f"{cpu.DOMAIN} does not take {', '.join(more)}")
    for name, lacking in LACKING.items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value > 0:
            raise NearMiss(f"{cpu.DOMAIN} has no {lacking}")
    if len(node.outputs) > len(GROUP_QUERY_ATTENTION.outputs):
        raise NearMiss(f"{cpu.DOMAIN} does not give its scores")
    if (reason := cpu.refused_head(head)) is not None:
        raise NearMiss(reason)
    angles = (dims(GROUP_QUERY_ATTENTION.get(node, "cos_cache")) or [None])[-1]
    if node.attributes.get_int("do_rotary", 0) and isinstance(angles, int) and angles * 2 != head:
        raise NearMiss(f"{cpu.DOMAIN} rotates whole heads, not {angles * 2} of {head}")


def _is_shared(node: ir.Node) -> bool:
    past, present = dims(node.inputs[3]), dims(node.outputs[1])
    return past is not None and present is not None and past[2] == present[2]
