"""The rows of a session's cache on a device: what they hold, and whose turn it is to work on them.

In: the cache's buffers. Out: :class:`CacheRows`, the session's
:class:`~llmc.runtimes.session.capabilities.RowEditor`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from llmc.runtimes.device.decoder import Decoder
from llmc.runtimes.device.interface import Device
from llmc.runtimes.device.session_buffers import SessionBuffers, part
from llmc.runtimes.session.capabilities import CacheSpoiler, RowEditor
from llmc.runtimes.session.engine import Int64Array, require_prefix


class CacheRows(RowEditor, CacheSpoiler):
    """What a session, its recorder and its decode loops know of the cache in common.

    Attributes:
        lengths: Tokens that each row holds, [batch] int64.
        capacity: Slots of each row.
        turn: Counts who has worked on the rows: a loop goes on only while it was the last.
    """

    def __init__(self, device: Device, decoder: Decoder, memory: SessionBuffers) -> None:
        """No rows yet."""
        self._device, self._decoder, self._memory = device, decoder, memory
        self.lengths: Int64Array = np.zeros(0, np.int64)
        self.capacity = 0
        self.turn = 0
        self.mixes_lengths = decoder.traits.ragged_chunks
        self.layers = tuple(sorted({tensor.layer for tensor in decoder.cache if tensor.layer is not None}))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, capacity)."""
        return len(self.lengths), self.capacity

    def take_turn(self) -> int:
        """End whatever loop works on the rows; returns the number of the new turn."""
        self.turn += 1
        return self.turn

    def hold(self, row: int, source: int, length: int) -> None:
        """Copy slots within the cache, on the device; see :class:`RowEditor`."""
        require_prefix(self.lengths, source, length)
        self.take_turn()
        self.lengths[row] = length
        for tensor in self._decoder.cache if length and row != source else ():
            size, stride = tensor.nbytes(1, self.capacity), self.capacity * tensor.slot_bytes
            cache = self._memory.named[tensor.past]
            origin, target = (part(cache, index * size, size) for index in (source, row))
            nbytes = length * tensor.slot_bytes
            self._device.copy_pieces(origin, target, size // stride, nbytes, (stride, stride))

    def spoil(self, position: int, layers: Collection[int], seed: int) -> None:
        """Let keys and values be others, on the host; see :class:`CacheSpoiler`."""
        draw = np.random.default_rng(seed)
        self.take_turn()
        for tensor in self._decoder.cache:
            if tensor.layer in layers:
                array = np.empty(tensor.shape(1, self.capacity), tensor.dtype)
                self._device.download(self._memory.named[tensor.past], array)
                self._device.wait()
                tensor.spoil(array, position, draw)
                self._device.upload(self._memory.named[tensor.past], array)
                self._device.wait()
