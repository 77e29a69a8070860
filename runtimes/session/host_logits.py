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
        """Most likely token after each row's last valid position, [batch] int64."""
        if self.values.shape[1] == 1:
            return np.asarray(self.values[:, 0].argmax(axis=-1), np.int64)
        rows = zip(self.values, np.maximum(self.last, 0), strict=True)
        return np.array([row[position].argmax() for row, position in rows], dtype=np.int64)
