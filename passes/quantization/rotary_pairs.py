"""Which channels of a head rotary embedding turns into each other, and how far.

In: an attention node of a runtime and the width of its heads. Out: :class:`RotaryPairs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION as ATTENTION

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class RotaryPairs:
    """Of a head's channels, each [width].

    Attributes:
        partners: With which channel each is turned, int64; its own number where it is not turned.
        signs: Of the partner's part in what a channel becomes: -1, 1, or 0 where it is not turned.
        angles: Column of each channel in the tables of cosines and sines, int64; 0 where it is not turned.
    """

    partners: npt.NDArray[np.int64]
    signs: Array
    angles: npt.NDArray[np.int64]

    @classmethod
    def of(cls, node: ir.Node, width: int) -> RotaryPairs:
        """Of a GroupQueryAttention with heads of ``width`` channels.

        One that does not rotate may have a rotation before it, in halves of a head as transformers' models do.
        """
        channels, turned = np.arange(width), _turned(node, width)
        if node.attributes.get_int("rotary_interleaved", 0):
            partners, first, angles = channels ^ 1, channels % 2 == 0, channels // 2
        else:
            half = turned // 2
            first = channels < half
            partners, angles = (
                np.where(first, channels + half, channels - half),
                np.where(first, channels, channels - half),
            )
        rotates = channels < turned
        signs = np.where(rotates, np.where(first, -1.0, 1.0), 0.0).astype(np.float32)
        return cls(np.where(rotates, partners, channels), signs, np.where(rotates, angles, 0))

    def lengths(self, keys: Array) -> Array:
        """Of each channel's pair, the largest that it can be at any position; of others the magnitude.

        Args:
            keys: [..., width].
        """
        return np.where(self.signs == 0, np.abs(keys), np.hypot(keys, keys[..., self.partners]))

    def turn(self, keys: Array, cosines: Array, sines: Array) -> Array:
        """Keys as they are some positions further on.

        Args:
            keys: [..., width], turned at their own positions.
            cosines: Of the angles between, a row of the table; the tables' own magnitude is taken out.
            sines: The same.
        """
        magnitude = np.hypot(cosines, sines)
        cosine, sine = (np.take(part / magnitude, self.angles) for part in (cosines, sines))
        return np.where(self.signs == 0, keys, keys * cosine + self.signs * keys[..., self.partners] * sine)


def _turned(node: ir.Node, width: int) -> int:
    """How many of the first channels are turned: two for each angle of the table."""
    table = ATTENTION.get(node, "cos_cache")
    angles = table.shape[-1] if table is not None and table.shape is not None else None
    return min(2 * angles, width) if isinstance(angles, int) else width - width % 2
