"""A model that counts positions by itself: the slots of the chunk, from the lengths of the call alone.

Shape(input_ids), Shape(past key) → past, total ─Range→ slots [sequence]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .graphs import Array, draw, parse

HIDDEN, TABLE = 8, 40
INPUTS = f"""int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
    int64[batch, sequence] position_ids, float[batch, sequence, {HIDDEN}] h,
    float[batch, 2, past, 4] "past_key_values.0.key\""""
LENGTHS = """
    seq1 = Shape<start=1, end=2>(input_ids) past1 = Shape<start=2, end=3>("past_key_values.0.key")
    seq = Squeeze(seq1) past = Squeeze(past1) total1 = Add(past1, seq1) total0 = Add(past, seq)
    slots = Range(past, total0, one)
"""
SAMPLES = ((0, 6), (5, 3), (9, 1))
"""Past and chunk lengths of the calls that are compared."""


def make(body: str, weights: Mapping[str, Array] | None = None, known: str = "") -> ir.Model:
    """A graph that makes ``y`` of ``h`` and what ``body`` computes from ``slots``; ``known``: shapes of values."""
    numbers = {"zero": 0, "one": 1, "two": 2, "axis0": [0], "axis1": [1], "axis2": [2], "axis3": [3]}
    made: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
    made |= {"table": draw(TABLE, HIDDEN), "words": draw(30, HIDDEN, seed=1)} | dict(weights or {})
    values = f"<float[batch, sequence, {HIDDEN}] y0, int64[sequence] slots{known}>"
    return parse(f"m ({INPUTS}) => (float[batch, sequence, {HIDDEN}] y) {values} {{ {LENGTHS} {body} }}", made)


def feeds(past: int, seq: int, padding: Sequence[int] = (0, 0)) -> dict[str, Array]:
    """Two rows, each after as many columns of padding on the left as it says."""
    mask = (np.arange(past + seq) >= np.asarray(padding)[:, None]).astype(np.int64)
    return {
        "input_ids": np.random.default_rng(past).integers(0, 30, (2, seq)),
        "attention_mask": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, past:],
        "h": draw(2, seq, HIDDEN, seed=3),
        "past_key_values.0.key": np.zeros((2, 2, past, 4), np.float32),
    }
