"""One call of attention, lowered and as its body says it: a few rows, chunk by chunk, over either cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.set_cache_io import SetCacheIO

from .graphs import Array, apply, draw, draw_all, open_session, parse, run_shared

HEADS, KV_HEADS, DIM, POSITIONS = 4, 2, 16, 40
TEXT = """m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, int64[batch, seq] position_ids,
    {inputs}, float[batch, 2, past, 16] "past_key_values.0.key",
    float[batch, 2, past, {value_dim}] "past_key_values.0.value")
    => (y, float[batch, 2, length, 16] "present.0.key", float[batch, 2, length, {value_dim}] "present.0.value")
{{
    y, "present.0.key", "present.0.value" = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale={scale} {more}>(
        {query}, "past_key_values.0.key", "past_key_values.0.value", attention_mask, {optional})
}}"""


@dataclass(frozen=True)
class Call:
    """What is asked of attention."""

    packed: bool = False
    rotary: bool = True
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    qk_norm: bool = False
    chunk: int = 0
    alibi: bool = False
    scale: float = 0.3

    def model(self, value_dim: int = DIM, more: str = "") -> ir.Model:
        optional = ["cos, sin, position_ids"] if self.rotary else [", , "]
        optional += ["q_norm, k_norm"] if self.qk_norm else [", "]
        optional += ["sink" if self.sinks else "", *(["slopes"] if self.alibi else [])]
        more += f", window={self.window}" if self.window else ""
        more += f", softcap={self.softcap}" if self.softcap else ""
        more += f", chunk={self.chunk}" if self.chunk else ""
        more += ", interleaved=1" if self.interleaved else ""
        more += ", norm_epsilon=0.001" if self.qk_norm else ""
        widths = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * value_dim}
        names = {"qkv": sum(widths.values())} if self.packed else widths
        text = TEXT.format(
            inputs=", ".join(f"float[batch, seq, {width}] {name}" for name, width in names.items()),
            query="qkv, , " if self.packed else "q, k, v",
            optional=", ".join(optional),
            more=more,
            scale=self.scale,
            value_dim=value_dim,
        )
        angles = draw(POSITIONS, DIM // 2, scale=2)
        weights: dict[str, Array] = {"cos": np.cos(angles), "sin": np.sin(angles), "sink": draw(HEADS, seed=3)}
        weights |= {"q_norm": draw(DIM, seed=4), "k_norm": draw(DIM, seed=5)}
        return parse(text, weights | {"slopes": (2.0 ** -np.arange(1, HEADS + 1)).astype(np.float32)})

    def tokens(self, rows: int, length: int) -> dict[str, Array]:
        """Queries, keys and values of every token of every row."""
        width = HEADS * DIM
        made = draw_all(
            {"q": (rows, length, width), "k": (rows, length, width // 2), "v": (rows, length, width // 2)}, seed=9
        )
        return {"qkv": np.concatenate(list(made.values()), axis=2)} if self.packed else made


def cache(batch: int, slots: int, fill: float = 0.0) -> dict[str, Array]:
    names = ("past_key_values.0.key", "past_key_values.0.value")
    return {name: np.full((batch, KV_HEADS, slots, DIM), fill, np.float32) for name in names}


@functools.cache
def body_session(call: Call) -> ort.InferenceSession:
    return open_session(call.model())


@functools.cache
def lowered_session(call: Call, shared: bool, query_seqlens: bool) -> ort.InferenceSession:
    model = call.model()
    apply(LowerAttention(query_seqlens=query_seqlens), model)
    SetCacheIO("shared" if shared else "grow")(model)
    return open_session(model)


def expected(call: Call, tokens: dict[str, Array], row: int, chunks: list[int]) -> list[Array]:
    """One row alone and without padding, chunk by chunk, by the operator's body: its outputs, and the last cache."""
    session, past, outputs, done = body_session(call), cache(1, 0), [], 0
    for length in chunks:
        feeds = {name: array[[row], done : done + length] for name, array in tokens.items()}
        done += length
        feeds |= past | {"input_ids": np.zeros((1, length), np.int64), "attention_mask": np.ones((1, done), np.int64)}
        feeds["position_ids"] = np.arange(done - length, done)[None]
        known = {value.name for value in session.get_inputs()}
        y, *present = session.run(None, {name: array for name, array in feeds.items() if name in known})
        past = dict(zip(past, present, strict=True))
        outputs.append(y[0])
    return [*outputs, *past.values()]


def check(
    call: Call, chunks: list[list[int]], *, shared: bool, query_seqlens: bool = True, capacity: int = 24
) -> None:
    """``chunks[i][row]`` tokens of each row, padded on the right in each chunk, through the lowered graph."""
    rows, totals = len(chunks[0]), [sum(lengths) for lengths in zip(*chunks, strict=True)]
    tokens = call.tokens(rows, max(totals))
    wanted = [expected(call, tokens, row, [c[row] for c in chunks if c[row]]) for row in range(rows)]
    session = lowered_session(call, shared, query_seqlens)
    known = {value.name for value in session.get_inputs()}
    # What lies beyond a row's tokens must not be seen.
    past = cache(rows, capacity if shared else 0, fill=50.0)
    memory = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in past.items()}
    mask, done, calls = np.zeros((rows, 0), np.int64), [0] * rows, [0] * rows
    for lengths in chunks:
        seq = max(lengths)
        valid = (np.arange(seq) < np.asarray(lengths)[:, None]).astype(np.int64)
        mask = np.concatenate([mask, valid], axis=1)
        feeds: dict[str, Any] = {"input_ids": np.zeros((rows, seq), np.int64), "attention_mask": mask}
        for name, array in tokens.items():
            feeds[name] = np.full((rows, seq, array.shape[2]), 99.0, np.float32)
            for row, length in enumerate(lengths):
                feeds[name][row, :length] = array[row, done[row] : done[row] + length]
        if shared:
            y = run_shared(session, {k: v for k, v in feeds.items() if k in known}, memory)
            past = {name: value.numpy() for name, value in memory.items()}
        else:
            y, *present = session.run(None, {k: v for k, v in (feeds | past).items() if k in known})
            past = dict(zip(past, present, strict=True))
        for row, length in enumerate(lengths):
            done[row] += length
            if length:
                np.testing.assert_allclose(y[row, :length], wanted[row][calls[row]], rtol=1e-4, atol=2e-5)
                calls[row] += 1
    for row, total in enumerate(totals):
        for actual, right in zip(past.values(), wanted[row][-2:], strict=True):
            np.testing.assert_allclose(actual[row, :, :total], right[0], rtol=1e-5, atol=1e-5)
