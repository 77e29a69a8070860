"""Logits that stay on the device.

In: how a session reads its last forward call's. Out: the :class:`~llmc.runtimes.session.engine.Logits` protocol.
"""

from __future__ import annotations

from collections.abc import Callable

from llmc.runtimes.session.engine import FloatArray, Int64Array
from llmc.runtimes.session.host_logits import HostLogits


class DeviceLogits:
    """Logits of one forward call, on the device until :meth:`host` copies them."""

    def __init__(
        self, read: Callable[[], FloatArray], last: Int64Array, most_likely: Callable[[], Int64Array] | None
    ) -> None:
        """Where they are.

        Args:
            read: Copies them to the host, [batch, 1 or chunk, vocab_size] float32.
            last: Each row's last valid position, [batch].
            most_likely: Finds each row's most likely token on the device, [batch] int64; None: the host does.
        """
        self._read, self._last, self._most_likely = read, last, most_likely

    def host(self) -> FloatArray:
        """[batch, 1 or chunk, vocab_size] float32."""
        return self._read()

    def argmax(self) -> Int64Array:
        """Most likely token after each row's last valid position, [batch] int64."""
        return HostLogits(self.host(), self._last).argmax() if self._most_likely is None else self._most_likely()
