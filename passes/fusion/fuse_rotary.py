"""Rotary embedding into attention.

    q = RotaryEmbedding(q₀, cos(position_ids), sin(position_ids))                q₀, k₀
    k = RotaryEmbedding(k₀, cos(position_ids), sin(position_ids))       →          │
    CachedAttention(q, k, …)                                             CachedAttention(q₀, k₀, …,
                                                                             cos_table, sin_table, position_ids)

cos and sin are whatever the model computes from the positions (plain, scaled, YaRN, Llama 3): the pass computes that
part of the graph for every position up to ``max_positions`` and stores the two tables. It fires only where they
depend on nothing but the token's own position, which it checks by computing them for other sequences as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.contract import POSITION_IDS
from llmc.compiler.graph.operators import cached_attention
from llmc.passes.attention.attention_paths import query_and_key, read_before
from llmc.passes.graph.graph_query import add_initializer, graph_input
from llmc.passes.graph.subgraph import compute, content, cut
from llmc.passes.graph_pass import Fact, FusionPass, NearMiss, Order

FloatArray = npt.NDArray[np.float32]
SAME_ANGLE = 1e-6
"""Largest difference of two cosines that are computed twice; a dependence on the sequence shows far above it."""


@dataclass(frozen=True)
class FuseRotary(FusionPass):
    """Move rotary embeddings inside attention.

    Attributes:
        max_positions: Rows of the tables; the longest context that the fused graph can run.
    """

    what: ClassVar[str] = "rotary"
    order = Order(needs=(Fact.FLOAT32,), gives=(Fact.ROTATIONS,), ends=(Fact.LAYOUTS, Fact.NOTHING_DEAD))
    max_positions: int

    def sites(self, model: ir.Model) -> list[ir.Node]:
        """Every attention, in a graph that has rotary embeddings."""
        nodes = list(model.graph)
        if not any(node.op_type == "RotaryEmbedding" and not node.domain for node in nodes):
            return []
        attentions = cached_attention.SIGNATURE.calls(model.graph)
        return [node for node in attentions if not cached_attention.variant_of(node).rotary]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        """Move the rotation of one attention inside."""
        rotaries, positions = _rotaries_of(model, node)
        tables = _tables(model, rotaries[0], positions, self.max_positions)
        inputs = read_before(node, rotaries, (True, True))
        inputs |= {"cos_cache": tables[0], "sin_cache": tables[1], "position_ids": positions}
        options = {name: rotaries[0].attributes.get_int(name, 0) for name in ("interleaved", "rotary_embedding_dim")}
        cached_attention.replace_call(node, inputs, options)


def _rotaries_of(model: ir.Model, node: ir.Node) -> tuple[list[ir.Node], ir.Value]:
    """The rotary embeddings of query and key, and the positions that they depend on."""
    if cached_attention.variant_of(node).qk_norm:
        raise NearMiss("it normalizes its query and key itself, and would do so before the rotation")
    sides = []
    for name, path in query_and_key(node):
        rotary = path.value.producer()
        if rotary is None or rotary.op_type != "RotaryEmbedding" or rotary.domain:
            made_by = rotary.op_type if rotary is not None else "the graph's input"
            raise NearMiss(f"its {name} comes from {made_by}, not from a rotary embedding")
        if not path.heads_first:
            raise NearMiss(f"the rotary embedding of its {name} is not laid out [batch, heads, seq, dim]")
        sides.append(rotary)
    q_rotary, k_rotary = sides
    cos, sin = q_rotary.inputs[1], q_rotary.inputs[2]
    if [*q_rotary.inputs[1:]] != [*k_rotary.inputs[1:]] or len(q_rotary.inputs) != 3 or cos is None or sin is None:
        raise NearMiss("its query and key are rotated by different angles")
    q_options, k_options = ({k: v.value for k, v in r.attributes.items()} for r in sides)
    if q_options != k_options:
        raise NearMiss("its query and key are rotated in different ways")
    positions = graph_input(model, POSITION_IDS)
    if positions is None:
        raise NearMiss("the graph has no position_ids")
    return sides, positions


def _tables(model: ir.Model, rotary: ir.Node, positions: ir.Value, rows: int) -> tuple[ir.Value, ir.Value]:
    """The tables for a rotary embedding's angles; those of an earlier layer when the angles are the same values."""
    cos, sin = rotary.inputs[1], rotary.inputs[2]
    assert cos is not None
    assert sin is not None
    names = f"rotary.cos.{cos.name}", f"rotary.sin.{sin.name}"
    known = [model.graph.initializers.get(name) for name in names]
    if known[0] is not None and known[1] is not None:
        return known[0], known[1]
    forward = np.arange(rows, dtype=np.int64)
    made = tabulate([cos, sin], positions, forward)
    # Another order, a short sequence of low positions, a single high one: a threshold or an extreme then moves.
    for sample in (forward[:: max(1, rows // 64)][::-1].copy(), forward[:2], forward[-1:]):
        again = tabulate([cos, sin], positions, sample)
        for table, other in zip(made, again, strict=True):
            if not np.allclose(table[sample], other, rtol=0, atol=SAME_ANGLE):
                raise NearMiss("its angles depend on more than each token's own position")
    cosines, sines = (add_initializer(model.graph, *named) for named in zip(names, map(ir.tensor, made), strict=True))
    return cosines, sines


def tabulate(values: list[ir.Value], positions: ir.Value, at: npt.NDArray[np.int64]) -> list[FloatArray]:
    """Compute ``values`` ([batch, seq, n], functions of ``positions``) at the given positions.

    Returns:
        One float array [len(at), n] per value.

    Raises:
        NearMiss: they depend on another input, or on an operator that cannot be computed here.
    """
    part = cut(values, {positions}, largest=None, by_length=False, subject="its angles depend")
    if any(value.producer() is None for value in values):
        raise NearMiss("its angles are constants, not computed from the position")
    ids = ir.val(POSITION_IDS, ir.DataType.INT64, ["batch", "seq"])
    graph = part.copy({positions: ids}, {constant: content(constant) for constant in part.constants})
    results = compute(graph, {POSITION_IDS: at[None, :]}, "its angles")
    for result in results:
        if result.ndim != 3 or result.shape[:2] != (1, len(at)):
            raise NearMiss(f"its angles have the shape {result.shape}, not one row per position")
    return [np.ascontiguousarray(result[0]) for result in results]
