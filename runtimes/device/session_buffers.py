"""The memory of one session: its cache in one allocation, and the small buffers beside it.

In: a decoder and sizes. Out: :class:`SessionBuffers`, which allocates, brings a run's inputs to the device, gives a
row's own part of everything, moves a cache to a longer one, and frees.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmc.compiler.base.contract import PAST
from llmc.runtimes.device.decoder import Decoder
from llmc.runtimes.device.interface import Buffer, Device
from llmc.runtimes.session.engine import Int64Array

ALIGNMENT = 256
"""Bytes to which a layer's cache is aligned, as a device aligns an allocation."""


class SessionBuffers:
    """Buffers by the name of what lies in them.

    Attributes:
        named: Name -> buffer; the layers' caches are parts of one allocation.
    """

    def __init__(self, device: Device, decoder: Decoder, vocab_size: int) -> None:
        """Nothing is allocated yet."""
        self._device, self._decoder, self._vocab_size = device, decoder, vocab_size
        self.named: dict[str, Buffer] = {}
        self._cache: Buffer | None = None

    @property
    def cache(self) -> dict[str, Buffer]:
        """The layers' caches."""
        return {name: buffer for name, buffer in self.named.items() if name.startswith(PAST)}

    @property
    def logits_row(self) -> int:
        """Bytes of the logits of one position."""
        return self._vocab_size * self._decoder.logits_type.itemsize

    def cache_sizes(self, batch: int, capacity: int) -> dict[str, int]:
        """Bytes of each layer's cache."""
        return {tensor.past: tensor.nbytes(batch, capacity) for tensor in self._decoder.cache}

    def step_sizes(self, batch: int, chunk: int = 1, rows: int = 1) -> dict[str, int]:
        """Bytes of what a run of ``chunk`` tokens with ``rows`` rows of logits reads and writes beside the cache."""
        return {
            "input_ids": batch * chunk * 8,
            "lengths": batch * self._decoder.traits.lengths_type.itemsize,
            "chunk_lengths": batch * 8,
            "last_rows": batch * 8,
            "logits": batch * rows * self.logits_row,
        }

    def values(
        self, batch: int, chunk: int, rows: int, own: Mapping[str, Buffer] | None = None
    ) -> dict[str, tuple[Buffer, tuple[int, ...]]]:
        """What a run reads and writes beside the cache, in these buffers or in :meth:`of_row`'s."""
        buffers = self.named if own is None else own
        return {
            "input_ids": (buffers["input_ids"], (batch, chunk)),
            self._decoder.traits.lengths: (buffers["lengths"], (batch,)),
            "chunk_lengths": (buffers["chunk_lengths"], (batch,)),
            "last_rows": (buffers["last_rows"], (batch,)),
            "logits": (buffers["logits"], (batch, rows, self._vocab_size)),
        }

    def of_row(self, row: int, chunk: int, rows: int, capacity: int) -> dict[str, Buffer]:
        """One row's own part of every buffer."""
        sizes = self.step_sizes(1, chunk, rows) | self.cache_sizes(1, capacity)
        return {name: part(self.named[name], row * size, size) for name, size in sizes.items()}

    def upload(self, input_ids: Int64Array, lengths: Int64Array, valid: Int64Array) -> None:
        """Bring tokens [batch, chunk], the rows' lengths and their valid tokens [batch] to the device."""
        self._device.upload(self.named["input_ids"], np.asarray(input_ids, np.int64))
        self._device.upload(self.named["lengths"], lengths.astype(self._decoder.traits.lengths_type))
        self._device.upload(self.named["chunk_lengths"], np.maximum(valid, 1))
        last_rows = np.arange(len(valid)) * input_ids.shape[1] + np.maximum(valid, 1) - 1
        self._device.upload(self.named["last_rows"], last_rows.astype(np.int64))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every buffer is there and large enough."""
        return all(name in self.named and self.named[name].nbytes >= size for name, size in sizes.items())

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """A buffer of its own for each name.

        Raises:
            EngineError: there is not so much memory; what came before it stays allocated.
        """
        for name, size in sizes.items():
            self.named[name] = self._device.allocate(size)

    def allocate_cache(self, sizes: Mapping[str, int]) -> None:
        """One allocation for all layers: a device rounds each up, by as much as a short cache is long.

        Raises:
            EngineError: there is not so much memory.
        """
        starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())])
        self._cache = self._device.allocate(int(starts[-1]))
        for (name, size), start in zip(sizes.items(), starts, strict=False):
            self.named[name] = part(self._cache, int(start), size)

    def move_cache(self, batch: int, old: int, new: int) -> None:
        """Copy caches of ``old`` slots into ones of ``new`` slots, and free the old ones.

        Raises:
            EngineError: there is not memory for both; the old one stays.
        """
        before, held = dict(self.named), self._cache
        self.allocate_cache(self.cache_sizes(batch, new))
        for tensor in self._decoder.cache:
            source, target = before[tensor.past], self.named[tensor.past]
            strides = (old * tensor.slot_bytes, new * tensor.slot_bytes)
            self._device.copy_pieces(source, target, tensor.nbytes(batch, old) // strides[0], strides[0], strides)
        if held is not None:
            self._device.free(held)

    def replace(self, name: str, nbytes: int) -> None:
        """Another buffer in the place of one, which is freed first.

        Raises:
            EngineError: there is not so much memory; the buffer is gone.
        """
        self._device.free(self.named.pop(name))
        self.named[name] = self._device.allocate(nbytes)

    def release(self) -> None:
        """Free everything."""
        for name in self.cache:
            del self.named[name]
        if self._cache is not None:
            self._device.free(self._cache)
            self._cache = None
        while self.named:
            self._device.free(self.named.popitem()[1])


def part(buffer: Buffer, offset: int, nbytes: int) -> Buffer:
    """Some of a buffer's bytes."""
    owner = None if buffer.owner is None else buffer.owner[offset : offset + nbytes]
    return Buffer(buffer.address + offset, nbytes, owner)
