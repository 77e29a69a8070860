"""One call of attention and what it may ask for, and layers over one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from .graphs import Array, draw, draw_all, parse

DIM, HEADS, KV_HEADS = 16, 4, 2
PAST = ("past_key_values.0.key", "past_key_values.0.value")
TEXT = """m (int64[batch, seq] input_ids, int64[batch, total] attention_mask,
    {inputs}, float[batch, {kv_heads}, past, 16] "past_key_values.0.key",
    float[batch, {kv_heads}, past, {value_dim}] "past_key_values.0.value")
    => (float[batch, seq, {out}] y, float[batch, {kv_heads}, length, 16] "present.0.key",
        float[batch, {kv_heads}, length, {value_dim}] "present.0.value")
{{
    y, "present.0.key", "present.0.value" =
        llmc.CachedAttention<num_heads={heads}, kv_num_heads={kv_heads}, scale={scale} {more}>(
        {query}, "past_key_values.0.key", "past_key_values.0.value", attention_mask, {optional})
}}"""
CacheKind = Literal["concat", "scatter"]


@dataclass(frozen=True)
class Call:
    """What is asked of attention."""

    window: int = 0
    chunk: int = 0
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    heads: int = HEADS
    kv_heads: int = KV_HEADS
    value_dim: int = DIM
    packed: bool = False
    rotary: bool = False
    qk_norm: bool = False
    scale: float = 0.3

    def model(self) -> ir.Model:
        numbers = {"window": self.window, "chunk": self.chunk, "softcap": self.softcap}
        more = "".join(f", {name}={number}" for name, number in numbers.items() if number)
        optional = ["cos, sin, position_ids" if self.rotary else ", , "]
        optional += ["q_norm, k_norm" if self.qk_norm else ", ", "sink" if self.sinks else ""]
        optional += ["slopes"] if self.alibi else []
        widths = {"q": self.heads * DIM, "k": self.kv_heads * DIM, "v": self.kv_heads * self.value_dim}
        given = {"qkv": sum(widths.values())} if self.packed else widths
        inputs = ["int64[batch, seq] position_ids"] if self.rotary else []
        inputs += [f"float[batch, seq, {width}] {name}" for name, width in given.items()]
        text = TEXT.format(
            inputs=", ".join(inputs),
            query="qkv, , " if self.packed else "q, k, v",
            optional=", ".join(optional),
            more=more,
            scale=self.scale,
            heads=self.heads,
            kv_heads=self.kv_heads,
            value_dim=self.value_dim,
            out=self.heads * self.value_dim,
        )
        weights: dict[str, Array] = {"cos": draw(40, DIM // 2), "sin": draw(40, DIM // 2, seed=1)}
        weights |= {"q_norm": draw(DIM, seed=4), "k_norm": draw(DIM, seed=5), "sink": draw(self.heads, seed=3)}
        weights["slopes"] = (2.0 ** -np.arange(1, self.heads + 1)).astype(np.float32)
        return parse(text, weights)

    def tokens(self, rows: int, length: int, seed: int = 9) -> dict[str, Array]:
        """Queries, keys and values of every token of every row."""
        kv = self.kv_heads
        shapes = {"q": (rows, length, self.heads * DIM), "k": (rows, length, kv * DIM)}
        return draw_all(shapes | {"v": (rows, length, kv * self.value_dim)}, seed=seed)

    def cache(self, rows: int, slots: int, fill: float = 0.0) -> dict[str, Array]:
        widths = zip(PAST, (DIM, self.value_dim), strict=True)
        return {name: np.full((rows, self.kv_heads, slots, width), fill, np.float32) for name, width in widths}


CALLS = {
    "plain": Call(),
    "one head": Call(heads=1, kv_heads=1),
    "a key head for each": Call(heads=3, kv_heads=3),
    "three to a key head": Call(heads=6, kv_heads=2),
    "window": Call(window=3),
    "a window of one": Call(window=1),
    "chunks": Call(chunk=4),
    "chunks of one": Call(chunk=1),
    "window, chunks": Call(window=2, chunk=3),
    "softcap": Call(softcap=0.7),
    "softcap of 50, scores that reach it": Call(softcap=50.0, scale=12.0),
    "sinks": Call(sinks=True),
    "ALiBi": Call(alibi=True),
    "ALiBi, six heads, window": Call(alibi=True, heads=6, kv_heads=2, window=4),
    "ALiBi, chunks": Call(alibi=True, chunk=3),
    "ALiBi, sinks, softcap": Call(alibi=True, sinks=True, softcap=1.5),
    "softcap, window": Call(softcap=1.5, window=4),
    "sinks, window, six heads": Call(sinks=True, window=4, heads=6),
    "everything": Call(window=4, chunk=6, softcap=1.5, sinks=True, alibi=True, heads=6),
}
WIDE_KEYS = {
    "narrow values": Call(value_dim=8),
    "wide values, window": Call(value_dim=24, window=3),
    "narrow values, sinks, softcap": Call(value_dim=8, sinks=True, softcap=1.5),
    "wide values, ALiBi": Call(value_dim=24, alibi=True, heads=6),
}


def ids(rows: int, seq: int) -> Array:
    return np.zeros((rows, seq), np.int64)


LAYER = """y{n}, k{n}, v{n} = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3 {more}>(
    {q}, k, k, pk, pv, attention_mask)"""


def layers(*more: str) -> ir.Model:
    """As many layers over one another; each has its attributes."""
    count = len(more)
    calls = "\n".join(LAYER.format(n=i, q=f"y{i - 1}" if i else "q", more=text) for i, text in enumerate(more))
    outputs = ", ".join(f"float[batch, 2, length, 16] {kind}{i}" for i in range(count) for kind in "kv")
    hidden = ", ".join(f"float[batch, seq, 64] y{i}" for i in range(count - 1))
    model = parse(f"""m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, float[batch, seq, 64] q,
        float[batch, seq, 32] k, float[batch, 2, past, 16] pk, float[batch, 2, past, 16] pv)
        => (float[batch, seq, 64] y{count - 1}, {outputs}) <{hidden}> {{ {calls} }}""")
    for index, node in enumerate(model.graph):
        node.name = f"layers.{index}/attention"
    return model


def counting(shape: str = "Shape<start=2, end=3>", kind: str = "key", *, read: bool = True) -> ir.Model:
    """Two layers of a model that makes something of the cache's length."""
    model = parse(f"""m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, float[batch, seq, 64] q,
        float[batch, seq, 32] k, float[batch, 2, past, 16] "past_key_values.0.key",
        float[batch, 2, past, 16] "past_key_values.0.value")
        => (float[batch, seq, 64] y1, pk0, pv0, pk1, pv1{", slots" if read else ""}) <float[batch, seq, 64] y0> {{
        y0, pk0, pv0 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(
            q, k, k, "past_key_values.0.key", "past_key_values.0.value", attention_mask)
        y1, pk1, pv1 = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(
            y0, k, k, "past_key_values.0.key", "past_key_values.0.value", attention_mask)
        count = {shape}("past_key_values.0.{kind}")
        {"slots = Neg(count)" if read else ""}
    }}""")
    next(node for node in model.graph if node.op_type == "Shape").name = "count"
    return model


def another_cache(layer: int, op: str) -> ir.Model:
    """A call of attention, and a layer whose cache is made by another operator."""
    past = f"past_key_values.{layer}.key"
    made = f'Concat<axis=2>("{past}", "{past}")' if op == "Concat" else f'{op}("{past}")'
    return parse(f"""m (float[batch, 2, past, 16] "{past}", int64[batch, seq] input_ids,
        int64[batch, total] attention_mask, float[batch, seq, 64] q, float[batch, seq, 32] k,
        float[batch, 2, past, 16] "past_key_values.0.key", float[batch, 2, past, 16] "past_key_values.0.value")
        => ("present.{layer}.key", float[batch, seq, 64] y, "present.0.key", "present.0.value") {{
        y, "present.0.key", "present.0.value" = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(
            q, k, k, "past_key_values.0.key", "past_key_values.0.value", attention_mask)
        "present.{layer}.key" = {made}
    }}""")
