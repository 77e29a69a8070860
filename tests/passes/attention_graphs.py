"""Attention as a traced decoder has it: projections, heads, norms, rotation, and the merge before the operator.

x ─MatMul→ [B,S,H·D] ─Reshape→ [B,S,H,D] ─(norm)→ ─Transpose→ [B,H,S,D] ─(norm)→ ─rotate→
  ─Transpose→ [B,S,H,D] ─Reshape→ [B,S,H·D] ─▶ llmc::CachedAttention
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from .graphs import Array, draw, draw_all, parse

HIDDEN, HEADS, KV_HEADS, DIM = 24, 4, 2, 16
PLAIN_ANGLES = """
    float_pos = Cast<to=1>(position_ids)
    column = Unsqueeze(float_pos, two)
    angles = Mul(column, inv_freq)
    cos = Cos(angles)
    sin = Sin(angles)"""
ROTATE = "{n}_rot = RotaryEmbedding({n}_core, cos, sin)"
CALL = "llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.25>"


def head_path(n: str, core: str, *, norm: str = "") -> str:
    """One of q and k, from x to the call's input; ``norm``: BSHD or BHSD, where its heads are normalized."""
    call = f"RMSNormalization<axis=-1, epsilon=1e-3>({{}}, {n}_norm)"
    before = f"{n}_a = {call.format(f'{n}_split')}" if norm == "BSHD" else f"{n}_a = Identity({n}_split)"
    after = f"{n}_core = {call.format(f'{n}_t')}" if norm == "BHSD" else f"{n}_core = Identity({n}_t)"
    return f"""
    {n}_lin = MatMul(x, {n}_w)
    {n}_split = Reshape({n}_lin, {n}_heads)
    {before}
    {n}_t = Transpose<perm=[0,2,1,3]>({n}_a)
    {after}
    {core.format(n=n)}
    {n}_back = Transpose<perm=[0,2,1,3]>({n}_rot)
    {n} = Reshape({n}_back, {n}_merged)"""


def text(
    q: str = ROTATE,
    k: str = ROTATE,
    *,
    norms: tuple[str, str] = ("", ""),
    angles: str = PLAIN_ANGLES,
    call: str = f"{CALL}(q, k, v, past_k, past_v, attention_mask)",
    more_inputs: str = "",
) -> str:
    """The whole graph; the Identity nodes of absent norms are for the caller to take out."""
    return f"""main_graph (float[batch, seq, {HIDDEN}] x, int64[batch, total] attention_mask,
        int64[batch, seq] position_ids, float[batch, {KV_HEADS}, past, {DIM}] past_k,
        float[batch, {KV_HEADS}, past, {DIM}] past_v {more_inputs}) => (y, pk, pv)
    {{
        {angles}
        {head_path("q", q, norm=norms[0])}
        {head_path("k", k, norm=norms[1])}
        v = MatMul(x, v_w)
        y, pk, pv = {call}
    }}"""


def weights() -> dict[str, Array]:
    q, k = HEADS * DIM, KV_HEADS * DIM
    made: dict[str, Array] = draw_all({"q_w": (HIDDEN, q), "k_w": (HIDDEN, k), "v_w": (HIDDEN, k)}, scale=0.3)
    made |= {"q_norm": 1 + draw(DIM, seed=5, scale=0.2), "k_norm": 1 + draw(DIM, seed=6, scale=0.2)}
    shapes = {"q_heads": [0, 0, HEADS, DIM], "k_heads": [0, 0, KV_HEADS, DIM], "q_merged": [0, 0, q]}
    shapes |= {"k_merged": [0, 0, k], "one": [1], "two": [2]}
    made |= {name: np.asarray(shape, np.int64) for name, shape in shapes.items()}
    return made | {"inv_freq": (100.0 ** -np.linspace(0, 1, DIM // 2)).astype(np.float32)}


def make(graph_text: str, more: Mapping[str, Array] | None = None) -> ir.Model:
    model = parse(graph_text, weights() | dict(more or {}))
    for node in [node for node in model.graph if node.op_type == "Identity"]:
        source = node.inputs[0]
        assert source is not None
        node.outputs[0].replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
    return model


def feeds(batch: int = 2, seq: int = 3, past: int = 2) -> dict[str, Array]:
    shapes = {
        "x": (batch, seq, HIDDEN),
        "past_k": (batch, KV_HEADS, past, DIM),
        "past_v": (batch, KV_HEADS, past, DIM),
    }
    made: dict[str, Array] = draw_all(shapes, seed=50)
    positions = np.tile(np.arange(past, past + seq), (batch, 1))
    return made | {"attention_mask": np.ones((batch, past + seq), np.int64), "position_ids": positions}
