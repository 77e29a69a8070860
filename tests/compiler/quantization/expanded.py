"""Weights as quantized files are expanded to: floats on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Expanded:
    """Rows on a grid.

    Attributes:
        rows: [n, k] float32.
        levels: [n, blocks, block] whole numbers.
        steps: [n, blocks].
        lows: [n, blocks], what level 0 stands for.
    """

    rows: Array
    levels: Array
    steps: Array
    lows: Array


def expand(
    kind: str,
    bits: int,
    block: int = 32,
    *,
    shape: tuple[int, int] = (12, 256),
    dtype: npt.DTypeLike = np.float32,
    seed: int = 0,
    full: bool = True,
) -> Expanded:
    """Random numbers of ``bits`` bits, with steps as float16 holds them, expanded in float32, stored in ``dtype``.

    Args:
        kind: ``signed``: levels around a zero in the middle; ``points``: around a whole zero point of each block;
            ``offsets``: above any number.
        bits: Of a level.
        block: Features that share a step.
        shape: Of the rows.
        dtype: In which they are stored.
        seed: Of the random numbers.
        full: Blocks use the whole of their range, as a quantizer leaves them; else neither end of it.
    """
    rng = np.random.default_rng(seed)
    count, top = shape[1] // block, 2**bits - 1
    normal = rng.normal(2 ** (bits - 1) - 0.5, 2**bits / 6, (shape[0], count, block))
    levels = np.clip(np.rint(normal), 0, top) if full else np.clip(np.rint(normal), 1, top - 2)
    levels[..., 0], levels[..., -1] = (0, top) if full else (1, top - 2)
    steps = rng.uniform(0.001, 0.01, levels.shape[:2]).astype(np.float16).astype(np.float32)
    zeros = {
        "signed": np.full(steps.shape, 2.0 ** (bits - 1)),
        "points": rng.integers(1, top, steps.shape).astype(np.float64),
        "offsets": rng.uniform(0.2, top - 0.2, steps.shape),
    }[kind]
    lows = (-zeros * steps).astype(np.float32)
    rows = (levels.astype(np.float32) * steps[..., None] + lows[..., None]).reshape(shape)
    return Expanded(rows.astype(dtype).astype(np.float32), levels, steps, lows)
