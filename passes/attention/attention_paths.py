"""How a tensor gets from a projection to an attention operator.

In: an input of ``llmc::CachedAttention``, [batch, seq, heads x dim].
Out: what lies behind the Reshapes and Transposes that split heads, swap axes and merge heads again.

    projection [B,S,H·D] ─Reshape→ [B,S,H,D] ─Transpose→ [B,H,S,D] ─▶ core ─Transpose→ [B,S,H,D] ─Reshape→ [B,S,H·D]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.graph.graph_query import copy_dtype, insert_before, producer, reshape
from llmc.passes.graph_pass import NearMiss

SWAP = [0, 2, 1, 3]


@dataclass(frozen=True)
class HeadPath:
    """The end of a walk.

    Attributes:
        value: The tensor that the walk stopped at.
        heads_first: It is [batch, heads, seq, dim]; else [batch, seq, heads, dim], or 3-D when ``merged``.
        merged: It is 3-D, [batch, seq, heads x dim].
    """

    value: ir.Value
    heads_first: bool
    merged: bool


def walk_to_core(value: ir.Value, heads: int) -> HeadPath:
    """Go up from an attention input through layout changes only.

    Raises:
        NearMiss: a Reshape or Transpose on the way does something else than split, merge or swap heads.
    """
    current, heads_first, merged = value, False, True
    while True:
        node = current.producer()
        if node is None or node.domain or node.op_type not in {"Reshape", "Transpose"}:
            return HeadPath(current, heads_first, merged)
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "Transpose":
            if merged or [int(x) for x in node.attributes.get_ints("perm", [])] != SWAP:
                raise NearMiss(f"{node.name} transposes something else than sequence and heads")
            heads_first = not heads_first
        elif merged:
            _require_heads(node, source, heads)
            merged = False
        else:
            if heads_first:
                raise NearMiss(f"{node.name} reshapes before the heads are split")
            _require_heads(node, node.outputs[0], heads)
            merged = True
        current = source


def _require_heads(node: ir.Node, four_d: ir.Value, heads: int) -> None:
    shape = four_d.shape
    if shape is None or len(shape) != 4 or shape[2] != heads:
        raise NearMiss(f"{node.name} does not split or merge {heads} heads")


def to_merged(core: ir.Value, heads_first: bool, graph: ir.Graph) -> tuple[ir.Value, list[ir.Node]]:
    """The nodes that bring a 4-D ``core`` to [batch, seq, heads x dim], and their result."""
    nodes: list[ir.Node] = []
    value = core
    if core.shape is None or len(core.shape) != 4:
        raise NearMiss(f"{core.name} has no known 4-D shape")
    batch, heads, seq, dim = (core.shape[i] for i in (0, 1, 2, 3))
    if heads_first:
        node = ir.node("Transpose", [value], {"perm": SWAP})
        node.outputs[0].shape = ir.Shape([batch, seq, heads, dim])
        copy_dtype(core, node.outputs[0])
        nodes.append(node)
        value = node.outputs[0]
    else:
        heads, seq = seq, heads
    if not (isinstance(heads, int) and isinstance(dim, int)):
        raise NearMiss(f"{core.name} has a symbolic number or size of heads")
    width = heads * dim
    nodes.append(reshape(graph, value, [0, 0, width], [batch, seq, width]))
    return nodes[-1].outputs[0], nodes


def query_and_key(node: ir.Node) -> Iterator[tuple[str, HeadPath]]:
    """Where query and key of a ``CachedAttention`` come from, by name.

    Raises:
        NearMiss: they are packed, or come by more than layout changes.
    """
    for name, count in (("query", "num_heads"), ("key", "kv_num_heads")):
        value = cached_attention.get_input(node, name)
        if value is None:
            raise NearMiss("its query is packed already")
        yield name, walk_to_core(value, node.attributes.get_int(count, 0))


def read_before(node: ir.Node, steps: Sequence[ir.Node], heads_first: Sequence[bool]) -> dict[str, ir.Value | None]:
    """Query and key of an attention as they are before ``steps``, one each, that it will do itself."""
    inputs: dict[str, ir.Value | None] = {}
    nodes: list[ir.Node] = []
    for name, step, first in zip(("query", "key"), steps, heads_first, strict=True):
        source, graph = step.inputs[0], node.graph
        assert source is not None
        assert graph is not None
        inputs[name], more = to_merged(source, first, graph)
        nodes += more
    insert_before(node, nodes)
    return inputs


def rms_norm(value: ir.Value) -> ir.Node | None:
    """The RMSNormalization over the last axis that makes ``value``, if that is what makes it."""
    node = producer(value, "RMSNormalization")
    return node if node is not None and node.attributes.get_int("axis", -1) in {-1, 3} else None
