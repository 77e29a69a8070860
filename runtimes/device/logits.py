"""Logits that stay on the device.

In: a session's last forward call. Out: the :class:`~llmc.runtimes.session.engine.Logits` protocol over its buffer.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llmc.runtimes.session.engine import FloatArray, Int64Array


class LogitsHolder(Protocol):
    """What the logits ask of their session."""

    def read_logits(self, shape: tuple[int, ...]) -> FloatArray:
        """Copy the last logits to the host, float32."""
        ...

    def most_likely(self, batch: int) -> Int64Array:
        """Arg-max of the last logits [batch, 1, vocab_size]; [batch] int64."""
        ...


class DeviceLogits:
    """Logits of one forward call, on the device until :meth:`host` copies them."""

    def __init__(self, session: LogitsHolder, shape: tuple[int, int, int], last: Int64Array) -> None:
        """Of ``session``'s last call; ``last`` is each row's last valid position, [batch]."""
        self._session, self._shape, self._last = session, shape, last

    def host(self) -> FloatArray:
        """[batch, 1 or chunk, vocab_size] float32."""
        return self._session.read_logits(self._shape)

    def argmax(self) -> Int64Array:
        """Most likely token after each row's last valid position, [batch] int64; one number per row is copied."""
        if self._shape[1] == 1:
            return self._session.most_likely(self._shape[0])
        values = self.host()
        rows = zip(values, np.maximum(self._last, 0), strict=True)
        return np.array([row[position].argmax() for row, position in rows], np.int64)
