"""Whether a runtime's numbers are those that were expected.

In: arrays from both. Out: None, or what differs in a few words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TOLERANCES = {"float16": 2e-2, "float8e4m3fn": 0.2, "float8_e4m3fn": 0.2}
"""Largest difference by element type, as a share of the largest expected number."""
DEFAULT_TOLERANCE = 2e-3
NOT_COMPARED = frozenset({"bfloat16"})
"""Runtimes do not hand these numbers out in a form of their own."""
LARGEST = 1e37
"""From here on numbers count as infinite: runtimes mask with the largest float or with infinity."""
Array = npt.NDArray[Any]


def difference(
    computed: Sequence[Array | None] | None,
    expected: Sequence[Array],
    slots: Sequence[int | None] | None = None,
    tolerance: float | None = None,
) -> str | None:
    """Compare in order.

    Args:
        computed: None where the runtime was not asked to compute; an output that is no tensor is not compared.
        expected: What must come out.
        slots: For each output, how far along axis 2 it is defined.
        tolerance: Instead of the element type's, as a share of the largest expected number.
    """
    if computed is None:
        return None
    limits = slots or [None] * len(expected)
    for one, other, limit in zip(computed, expected, limits, strict=False):
        found = None if one is None else _difference(one, other, limit, tolerance)
        if found is not None:
            return found
    return None


def _difference(one: Array, other: Array, limit: int | None, share: float | None) -> str | None:
    if one.shape != other.shape:
        return f"shape {list(one.shape)} instead of {list(other.shape)}"
    if one.dtype.kind in "OUS" or other.dtype.kind in "OUS":
        return None if [str(item) for item in one.ravel()] == [str(item) for item in other.ravel()] else "other text"
    if other.dtype.name in NOT_COMPARED:
        return None
    if limit is not None:
        one, other = one[:, :, :limit], other[:, :, :limit]
    if np.iscomplexobj(other) or not other.size:
        return None
    left, right = _finite(one), _finite(other)
    scale = max(float(np.max(np.abs(right[np.isfinite(right)]), initial=0.0)), 1e-3)
    tolerance = scale * (TOLERANCES.get(other.dtype.name, DEFAULT_TOLERANCE) if share is None else share)
    exact = other.dtype.kind in "iub" and not other.dtype.name.endswith("int8")
    least = 1.0 if other.dtype.kind in "iu" else 0.0  # quantized to the neighbour
    if np.allclose(left, right, rtol=0, atol=0 if exact else max(tolerance, least), equal_nan=True):
        return None
    with np.errstate(invalid="ignore"):
        worst = float(np.nanmax(np.abs(left - right))) if np.isfinite(left - right).any() else float("inf")
    return f"off by up to {worst:.2g}, where numbers reach {scale:.2g}"


def _finite(array: Array) -> Array:
    numbers = np.asarray(array).astype(np.float64)
    return np.where(numbers > LARGEST, np.inf, np.where(numbers < -LARGEST, -np.inf, numbers))
