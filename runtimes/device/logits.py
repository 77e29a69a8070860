"""Logits that stay on the device.

In: how a session reads its last forward call's. Out: the :class:`~llmc.runtimes.session.engine.Logits` protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llmc.runtimes.session.engine import FloatArray, Int64Array
from llmc.runtimes.session.host_logits import HostLogits


@dataclass(frozen=True)
class DeviceLogits:
    """Logits of one forward call, on the device until :attr:`host` copies them.

    Attributes:
        host: Copies them, [batch, 1 or chunk, vocab_size] float32.
        last: Each row's last valid position, [batch].
        most_likely: Finds each row's most likely token on the device, [batch] int64; None: the host does.
    """

    host: Callable[[], FloatArray]
    last: Int64Array
    most_likely: Callable[[], Int64Array] | None

    def argmax(self) -> Int64Array:
        """Most likely token after each row's last valid position, [batch] int64; -1 where its logit is not finite."""
        return HostLogits(self.host(), self.last).argmax() if self.most_likely is None else self.most_likely()
