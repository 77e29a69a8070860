"""Logits that a runtime left in host memory.

In: what a forward call wrote. Out: the :class:`~llmc.runtimes.session.engine.Logits` protocol over it.
"""

from __future__ import annotations

import numpy as np

from llmc.runtimes.session.engine import FloatArray, Int64Array


class HostLogits:
    """Logits in host memory, viewed where the runtime wrote them."""

    def __init__(self, values: FloatArray, last: Int64Array) -> None:
        """Wrap ``values`` [batch, positions, vocab_size] float32 and each row's last valid position [batch] int64."""
        self._values = values
        self._last = last

    def host(self) -> FloatArray:
        """The array itself, [batch, 1 or chunk, vocab_size] float32."""
        return self._values

    def argmax(self) -> Int64Array:
        """Most likely token after each row's last valid position, [batch] int64."""
        if self._values.shape[1] == 1:
            return np.asarray(self._values[:, 0].argmax(axis=-1), np.int64)
        rows = zip(self._values, np.maximum(self._last, 0), strict=True)
        return np.array([row[position].argmax() for row, position in rows], dtype=np.int64)
