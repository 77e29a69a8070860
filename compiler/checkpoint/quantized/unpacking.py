"""Small numbers out of the bytes, or words, that they are packed into.

In: rows of bytes or of little-endian words. Out: rows of numbers, one an element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Values of 4-bit floats: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0, 5.3.3)."""


def unpack_words(words: Array, bits: int, count: int) -> Array:
    """Number ``i`` of a row takes ``bits`` bits from bit ``i * bits`` of the row on, the lowest first.

    Args:
        words: [n, words] integers of any width.
        bits: Of one number, 1 to 8.
        count: Of numbers in a row.

    Returns:
        uint8 [n, count].
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data[:, :count]
    if bits == 4:
        return nibbles(data)[:, :count]
    ones = np.unpackbits(data, axis=1, count=count * bits, bitorder="little").reshape(len(data), count, bits)
    return np.packbits(ones, axis=2, bitorder="little")[..., 0]


def nibbles(data: Array, *, high_first: bool = False) -> Array:
    """Two numbers a byte, uint8 [..., k] to [..., 2 * k]; that in the low four bits first unless ``high_first``."""
    low, high = data & 15, data >> 4
    pair = (high, low) if high_first else (low, high)
    return np.stack(pair, axis=-1).reshape(*data.shape[:-1], 2 * data.shape[-1])
