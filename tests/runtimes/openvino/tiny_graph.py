"""A tiny decoder of standard operators as OpenVINO's reader gets it, and the same in NumPy.

Three layers, of which the second sees two tokens; three query heads a key; and a state that is no cache: twice the
one before and the chunk's first token. Queries, keys and values are looked up by token: no layer needs another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

VOCAB, HEADS, KV_HEADS, WIDTH, STATE = 8, 6, 2, 4, 3
WINDOWS = (0, 2, 0)
"""Tokens that a layer sees, its own included; 0: all."""
OUTPUTS = len(WINDOWS) * HEADS * WIDTH + STATE
TABLES = {
    f"{kind}{layer}": np.random.default_rng(10 * layer + number)
    .standard_normal((VOCAB, heads, WIDTH))
    .astype(np.float32)
    for layer in range(len(WINDOWS))
    for number, (kind, heads) in enumerate((("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))
}
NUMBERS = {
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "axis0": np.array([0]),
    "axis1": np.array([1]),
    "flat": np.array([0, 0, HEADS * WIDTH]),
    "double": np.array(2, np.float32),
}
LAYER = """
    q4@ = Gather(q@, input_ids) q5@ = Transpose<perm=[0, 2, 1, 3]>(q4@)
    k4@ = Gather(k@, input_ids) k5@ = Transpose<perm=[0, 2, 1, 3]>(k4@)
    v4@ = Gather(v@, input_ids) v5@ = Transpose<perm=[0, 2, 1, 3]>(v4@)
    "present.@.key" = Concat<axis=2>("past_key_values.@.key", k5@)
    "present.@.value" = Concat<axis=2>("past_key_values.@.value", v5@)
    a@ = Attention<scale=1.0>(q5@, "present.@.key", "present.@.value", MASK)
    t@ = Transpose<perm=[0, 2, 1, 3]>(a@) y@ = Reshape(t@, flat)"""


def text() -> str:
    """The graph."""
    layers = range(len(WINDOWS))
    size = f"float[batch, {KV_HEADS}, LENGTH, {WIDTH}]"
    caches = [f'{size} "WHICH.{layer}.{kind}"' for layer in layers for kind in ("key", "value")]
    caches.append(f'float[batch, {STATE}] "WHICH.1.conv_state"')
    past, present = (
        ", ".join(caches).replace("WHICH", which).replace("LENGTH", length)
        for which, length in (("past_key_values", "past"), ("present", "total"))
    )
    masks = ("windowed" if window else "visible" for window in WINDOWS)
    body = "".join(
        LAYER.replace("@", str(layer)).replace("MASK", mask) for layer, mask in zip(layers, masks, strict=True)
    )
    return f"""<ir_version: 10, opset_import: ["" : 24]>
m (int64[batch, sequence] input_ids, int64[batch, total] attention_mask, {past})
    => (float[batch, sequence, {OUTPUTS}] logits, {present}) {{
    total1 = Shape<start=1, end=2>(attention_mask) seq1 = Shape<start=1, end=2>(input_ids)
    total0 = Squeeze(total1) seq0 = Squeeze(seq1) past1 = Sub(total1, seq1)
    columns = Range(zero, total0, one) rows = Range(zero, seq0, one) places = Add(rows, past1)
    place = Unsqueeze(places, axis1) back = Sub(place, columns)
    causal = GreaterOrEqual(back, zero) near = Less(back, two)
    seen = Cast<to=9>(attention_mask) seen3 = Unsqueeze(seen, axis1)
    visible3 = And(causal, seen3) windowed3 = And(visible3, near)
    visible = Unsqueeze(visible3, axis1) windowed = Unsqueeze(windowed3, axis1)
    {body}
    first = Gather<axis=1>(input_ids, axis0) first_f = Cast<to=1>(first)
    twice = Mul("past_key_values.1.conv_state", double) "present.1.conv_state" = Add(twice, first_f)
    state3 = Unsqueeze("present.1.conv_state", axis1) batch1 = Shape<start=0, end=1>(input_ids)
    state1 = Shape<start=1, end=2>("present.1.conv_state") wide = Concat<axis=0>(batch1, seq1, state1)
    states = Expand(state3, wide) logits = Concat<axis=2>(y0, y1, y2, states) }}"""


def save(path: Path) -> Path:
    """Write the graph."""
    model = onnx.parser.parse_model(text())
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in {**NUMBERS, **TABLES}.items()
    )
    onnx.save_model(model, path)
    return path


def attend(tokens: list[int]) -> np.ndarray:
    """What the layers say after each of a row's tokens, [tokens, layers * heads * width]."""
    made = []
    for layer, window in enumerate(WINDOWS):
        q, k, v = (TABLES[f"{kind}{layer}"][tokens] for kind in "qkv")
        k, v = (np.repeat(part, HEADS // KV_HEADS, axis=1) for part in (k, v))
        scores = np.einsum("qhw,khw->hqk", q, k)
        back = np.arange(len(tokens))[:, None] - np.arange(len(tokens))
        scores = np.where((back >= 0) & ((back < window) | (window == 0)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        made.append(np.einsum("hqk,khw->qhw", weights, v).reshape(len(tokens), -1))
    return np.concatenate(made, axis=1)
