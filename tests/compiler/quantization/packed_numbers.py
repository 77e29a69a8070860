"""What packed numbers stand for, by the formula: the specification of bodies and kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solver import Solved, high_plane, low_bits, low_plane
from llmc.compiler.quantization.solvers.round import RoundToNearest

Array = npt.NDArray[Any]


def packed_scheme(name: str, features: int | None = None) -> Scheme:
    scheme = scheme_of(name, features)
    assert scheme is not None
    assert scheme.form == "packed"
    return scheme


def solve(rows: Array, name: str) -> tuple[Scheme, Solved]:
    """Rounded to nearest."""
    scheme = packed_scheme(name, rows.shape[1])
    return scheme, RoundToNearest().solve(rows, None, scheme)


def dequantize(solved: Solved, scheme: Scheme, features: int) -> Array:
    """[n, features] float64."""
    assert scheme.block is not None
    assert solved.row_scales is not None
    levels = solved.levels.reshape(*solved.scales.shape, scheme.block).astype(np.float64)
    zeros = np.full(solved.scales.shape, 2.0 ** (scheme.bits - 1))
    if solved.zeros is not None:
        zeros = solved.zeros / 2.0 ** (8 - scheme.bits)
    scales = solved.row_scales[:, None].astype(np.float64) * solved.scales
    values: Array = ((levels - zeros[..., None]) * scales[..., None]).reshape(len(levels), -1)
    return values[:, :features]


def parts(solved: Solved, scheme: Scheme) -> dict[str, Array]:
    """What the operators read, by the names of their inputs."""
    shape = (*solved.scales.shape, -1)
    found: dict[str, Array | None] = {
        "weight": low_plane(solved.levels, scheme.bits).reshape(shape),
        "scales": solved.scales,
        "zero_points": solved.zeros,
        "row_scales": solved.row_scales,
    }
    if low_bits(scheme.bits) < scheme.bits:
        found["high"] = high_plane(solved.levels, scheme.bits).reshape(shape)
    return {name: array for name, array in found.items() if array is not None}
