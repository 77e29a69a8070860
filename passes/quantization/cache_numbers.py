"""Scales and centres of a layer's keys or values, from how far they reached on a text.

    stored = round((x - centre) / scale)

In: :class:`Reach`. Out: :class:`CacheNumbers`. An int8 divides its range evenly: half of what lies between the least
and the largest, with headroom, is what 127 steps hold, about the middle of the two. What lies beyond is cut off,
which costs far more than coarser steps. A float8 has the same relative precision at any magnitude, and loses least
about the mean.

The first token of a text is what most heads look at when they look at nothing else: half of all weights and more
fall on slot 0. What it loses by rounding, all later tokens lose alike, and what it holds hardly depends on the text.
So a centre is moved, by less than a step, to where the first slot is stored exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LARGEST_INT8, LARGEST_FP8 = 127.0, 448.0
SMALLEST_SHARE = 0.02
"""Of a layer's largest magnitude: a channel that was quieter gets this range."""
FP8_HEADROOM = 4.0
"""Costs nothing but two of the eighteen powers of two."""


@dataclass(frozen=True, eq=False)
class Reach:
    """How far the channels of a layer's keys or values went, each [kv_heads * head_dim] float32.

    Attributes:
        low: The least number of each channel, at any position.
        high: The largest.
        mean: Of all positions; 0 for a channel of keys that is turned far.
        first: What lay in slot 0, the mean of all windows.
    """

    low: Array
    high: Array
    mean: Array
    first: Array

    @property
    def magnitudes(self) -> Array:
        """The largest magnitude of each channel."""
        return np.maximum(-self.low, self.high)


@dataclass(frozen=True)
class CacheNumbers:
    """How keys or values of a layer are stored.

    Attributes:
        scales: One for each channel, or one for all.
        centres: What is taken from each channel before; empty: nothing.
    """

    scales: tuple[float, ...]
    centres: tuple[float, ...] = ()


def int8_scales(ranges: Array, headroom: float) -> tuple[float, ...]:
    """One per channel of a layer.

    Args:
        ranges: Largest magnitudes of the channels, [channels].
        headroom: How much further than that they reach.
    """
    least = max(SMALLEST_SHARE * float(ranges.max(initial=0.0)), 1e-6)
    scales = np.maximum(ranges, least) * headroom / LARGEST_INT8
    return tuple(float(x) for x in scales.astype(np.float32))


def fp8_scale(ranges: Array) -> tuple[float, ...]:
    """One for a layer: a power of two, which changes no number that stays within the range."""
    if not ranges.size:
        return ()
    largest = float(ranges.max())
    return (2.0 ** math.ceil(math.log2(largest * FP8_HEADROOM / LARGEST_FP8)) if largest > 0 else 1.0,)


def int8_about_a_centre(reach: Reach, headroom: float) -> CacheNumbers:
    """A scale and a centre for each channel: the middle of its range, less than half a step from it."""
    scales = int8_scales((reach.high - reach.low) / 2, headroom)
    steps, middle = np.asarray(scales), (reach.high.astype(np.float64) + reach.low) / 2
    return CacheNumbers(scales, _floats(reach.first - np.rint((reach.first - middle) / steps) * steps))


def fp8_about_a_centre(reach: Reach) -> CacheNumbers:
    """A centre for each channel, near its mean, from which numbers are least far; one scale for all."""
    scale = fp8_scale(np.maximum(reach.high - reach.mean, reach.mean - reach.low))
    steps = ((reach.first - reach.mean) / scale[0]).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return CacheNumbers(scale, _floats(reach.first - steps * scale[0]))


def _floats(array: Array) -> tuple[float, ...]:
    return tuple(float(x) for x in array.astype(np.float32))
