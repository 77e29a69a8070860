"""Logits that a runtime left in host memory.

In: what a forward call wrote. Out: the :class:`~llmc.runtimes.session.engine.Logits` protocol over it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.runtimes.session.engine import FloatArray, Int64Array


@dataclass(frozen=True)
class HostLogits:
    """Logits in host memory, viewed where the runtime wrote them."""

    values: FloatArray
    """[batch, positions, vocab_size] float32."""
    last: Int64Array
    """Each row's last valid position, [batch] int64."""

    def host(self) -> FloatArray:
        """The array itself, [batch, 1 or chunk, vocab_size] float32."""
        return self.values

    def argmax(self) -> Int64Array:
        """Most likely token after each row's last valid position, [batch] int64; -1 where that is not finite."""
        positions = np.maximum(self.last, 0) if self.values.shape[1] > 1 else np.zeros_like(self.last)
        rows = [row[position] for row, position in zip(self.values, positions, strict=True)]
        # Of a row with NaN that is NaN's place, and of one with infinity, infinity's.
        best = [row.argmax() for row in rows]
        chosen = [index if np.isfinite(row[index]) else -1 for row, index in zip(rows, best, strict=True)]
        return np.array(chosen, dtype=np.int64)
