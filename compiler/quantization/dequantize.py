"""What small numbers stand for: the floats that a runtime computes with.

In: solved rows and their scheme. Out: the rows as float32.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved


def dequantize(solved: Solved, scheme: Scheme, features: int) -> Array:
    """[n, features] float32, without what fills up the last block."""
    scales = np.asarray(solved.scales, np.float32)
    if solved.matrix_scale is not None:
        scales = scales * np.float32(solved.matrix_scale)
    if solved.row_scales is not None:
        scales = scales * solved.row_scales[:, None]
    values = solved.levels.astype(np.float32).reshape(*scales.shape, -1)
    if scheme.storage.is_integer():
        half = np.float32(2 ** (scheme.bits - 1))
        if scheme.zero in {"integer", "fixed"}:
            unit = np.float32(2.0 ** (scheme.bits - 8) if scheme.zero == "fixed" else 1)
            values -= solved.zero_points()[..., None] * unit
        else:
            values -= half
    values *= scales[..., None]
    if scheme.zero == "offset":
        values += solved.zero_points()[..., None].astype(np.float32)
    flat: Array = values.reshape(len(values), -1)
    return flat[:, :features] if flat.shape[1] != features else flat
