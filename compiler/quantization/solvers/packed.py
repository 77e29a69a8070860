"""Rounding to nearest for packed weights: whole rows, since a row's blocks share a float.

    weight = row scale · code · (level - zero),    code 0 … 255,    zero in steps of 2^(bits-8) from 0 to below 2^bits

The block with the widest steps has the code 255. Steps of other blocks are rounded to a code before the zero point is
chosen, and the levels after both: a range that a rounded step makes wider or narrower is then so at both ends alike,
and no weight is off by more than half a step but those that lie beyond the ends.

Symmetric blocks have no zero points, 2^(bits-1) stands for zero. A row of zeros has the scale 0.
"""

from __future__ import annotations

import numpy as np

from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Array, Solved
from llmc.compiler.quantization.solvers.block_extremes import block_extremes

LARGEST_CODE = 255
_TINY = np.finfo(np.float32).tiny


def round_packed(blocks: Array, scheme: Scheme) -> Solved:
    """Numbers of [n, blocks, block] float32."""
    largest, smallest = block_extremes(blocks)
    high, low = np.maximum(largest, 0), np.minimum(smallest, 0)
    top, half = np.float32(2**scheme.bits - 1), np.float32(2 ** (scheme.bits - 1))
    steps = (high - low) / top if scheme.zero == "fixed" else np.maximum(high / (half - 1), -low / half)
    row_scales, codes = scale_codes(steps)
    inverse = inverse_scales(row_scales, codes)
    if scheme.zero == "fixed":
        zeros = zero_codes(high, low, inverse, scheme.bits)
        middle = zeros * np.float32(2.0 ** (scheme.bits - 8))
    else:
        zeros, middle = None, np.full_like(steps, half)
    levels = blocks * inverse[..., None]
    levels += middle[..., None]
    np.rint(levels, out=levels)
    np.clip(levels, 0, top, out=levels)
    return Solved(levels.astype(np.uint8).reshape(len(blocks), -1), codes, zeros, row_scales=row_scales)


def scale_codes(steps: Array) -> tuple[Array, Array]:
    """Row scales [n] float32 and codes [n, blocks] uint8 for steps [n, blocks], of which none is negative."""
    row_scales = (steps.max(axis=1) / np.float32(LARGEST_CODE)).astype(np.float32)
    row_scales = np.where(row_scales < _TINY, np.float32(0), row_scales)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.where(row_scales[:, None] == 0, 0, steps / row_scales[:, None])
    # A block that is not all zeros keeps a step, however small beside its row's.
    codes = np.clip(np.rint(wanted), wanted > 0, LARGEST_CODE)
    return row_scales, codes.astype(np.uint8)


def inverse_scales(row_scales: Array, codes: Array) -> Array:
    """1 / (row scale · code), [n, blocks] float32; 0 where that is a division by nothing."""
    scales = row_scales[:, None] * codes.astype(np.float32)
    with np.errstate(divide="ignore"):
        return np.where(scales == 0, 0, 1 / scales).astype(np.float32)


def zero_codes(high: Array, low: Array, inverse: Array, bits: int) -> Array:
    """Zero points [n, blocks] uint8, with which the middle of the levels is that of the weights from low to high."""
    middle = (np.float32(2**bits - 1) - (high + low) * inverse) / 2
    return np.clip(np.rint(middle * np.float32(2.0 ** (8 - bits))), 0, 255).astype(np.uint8)
