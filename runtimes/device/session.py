"""A session whose KV cache, inputs and logits live on a device: ONNX Runtime's CUDA provider, TensorRT, or the host.

In: a loaded decoder (lengths are inputs, see ``passes/engine/take_lengths.py``) and a device. Out: the
:class:`Session` protocol, and :attr:`DeviceSession.chooser`, which decodes without the host
between two steps.

Every buffer is allocated by ``reset`` and stays where it is while it is large enough, so a decode step has fixed
addresses and is recorded once per (rows, capacity): its launches are then queued as one. Smaller batches use the
front of the same buffers; where a larger one is needed, all are freed first, so that old and new need not fit
together. A prompt's chunk is run without a recording, since its shape is new each time.

The first chunk is appended to every row as if all its columns were valid: the lengths that the graph gets end with
the chunk. What padding writes into the cache lies behind the row's own tokens, where no valid token looks, and is
overwritten by the next ones. Where the decoder takes no ragged chunks, later ones of several tokens run row by row,
each row on its own part of the buffers.

A decoder that was built for certain capacities runs with the smallest that holds what was asked for;
:meth:`DeviceSession.grow` moves the rows to a larger one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.cache_rows import CacheRows
from llmc.runtimes.device.decode_loop import DeviceChooser
from llmc.runtimes.device.decoder import Decoder
from llmc.runtimes.device.interface import Array, Device
from llmc.runtimes.device.logits import DeviceLogits
from llmc.runtimes.device.sampler_cache import SamplerCache
from llmc.runtimes.device.session_buffers import SessionBuffers, part
from llmc.runtimes.device.step_recorder import StepRecorder
from llmc.runtimes.session.capabilities import CacheSpoiler, TokenChooser
from llmc.runtimes.session.engine import EngineInfo, FloatArray, Int64Array, require_room, valid_tokens

CAPACITY_STEP = 64
"""Capacities are rounded up to a multiple, so that requests of similar length share buffers and recordings."""


class DeviceSession:
    """One engine and one KV cache on a device."""

    def __init__(
        self,
        decoder: Decoder,
        info: EngineInfo,
        device: Device,
        samplers: SamplerCache | None,
        fits: Callable[[int, int], None] | None = None,
    ) -> None:
        """Wrap a loaded decoder.

        Args:
            decoder: Computes on the device's queue and does not wait for it.
            info: What the engine is.
            device: Where the buffers go.
            samplers: Makes the graphs that choose tokens; None: the host chooses them.
            fits: Called with (batch, capacity) before anything is allocated; raises EngineError.
        """
        self._device, self.info, self._samplers, self._fits = device, info, samplers, fits
        self._io, self._traits = decoder, decoder.traits
        self._memory = SessionBuffers(device, decoder, info.vocab_size)
        self._buffers = self._memory.named
        self.rows = CacheRows(device, decoder, self._memory)
        self.recorder = StepRecorder(device, decoder, self._memory, self.rows)
        self.spoiler: CacheSpoiler | None = self.rows
        self.chooser: TokenChooser | None = None
        if samplers is not None and info.logits == "last":
            self.chooser = DeviceChooser(self.recorder, samplers)
        self._chunk_binding: Any = None
        self._host_logits: Array | None = None

    @property
    def lengths(self) -> Int64Array:
        """Tokens that each row holds, [batch] int64."""
        return self.rows.lengths.copy()

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache; see :meth:`llmc.runtimes.session.engine.Session.reset`."""
        require_room(self.info, batch, capacity)
        self.rows.take_turn()
        rounded = self._rounded(capacity)
        if (batch, rounded) != self.rows.shape:
            self._make_room(batch, rounded)
        self.rows.lengths = np.zeros(batch, np.int64)

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in each row, keeping what the rows hold; the cache is copied.

        Raises:
            EngineError: the capacity is beyond what the engine can run, or memory for both caches does not suffice;
                the session then holds no rows.
        """
        batch, old = self.rows.shape
        require_room(self.info, batch, capacity)
        rounded = self._rounded(capacity)
        if rounded <= old:
            return
        self.rows.take_turn()
        self._forget_addresses()
        self._load(rounded)
        try:
            self._memory.move_cache(batch, old, rounded)
        except EngineError:
            self._release()
            raise
        self.rows.capacity = rounded

    def _rounded(self, capacity: int) -> int:
        """What is allocated for a capacity, which the engine's context admits."""
        if self._traits.capacities:
            return next(built for built in self._traits.capacities if built >= capacity)
        return min(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP, self.info.max_context)

    def _load(self, capacity: int) -> None:
        """Let the decoder be the one for this capacity; where that is another, recordings of the old one go."""
        if self._traits.capacities and capacity != self.rows.capacity:
            self._forget_addresses()
            try:
                self._io.load(capacity)
            except EngineError:
                self._release()
                raise

    def _make_room(self, batch: int, capacity: int) -> None:
        """Buffers for so many rows and slots: those that are there, or, where one is too small, all anew."""
        self._load(capacity)
        cache, sizes = self._memory.cache_sizes(batch, capacity), self._memory.step_sizes(batch)
        if not self._memory.holds(cache | sizes):
            self._release()
            if self._fits is not None:
                self._fits(batch, capacity)
            self._memory.allocate(sizes)
            self._memory.allocate_cache(cache)
        self.rows.capacity, self._chunk_binding = capacity, None
        self.recorder.forget_binding()

    def _forget_addresses(self) -> None:
        """Drop what was made for buffers that move."""
        self.recorder.forget()
        if self._samplers is not None:
            self._samplers.forget_bindings()
        self._chunk_binding = None

    def _release(self) -> None:
        """Free all buffers; the session then holds no rows until it is reset."""
        self._forget_addresses()
        self.rows.capacity, self.rows.lengths = 0, np.zeros(0, np.int64)
        self._memory.release()

    def _reserve(self, name: str, nbytes: int) -> None:
        """Let a buffer have at least so many bytes."""
        if self._buffers[name].nbytes >= nbytes:
            return
        self._forget_addresses()
        try:
            self._memory.replace(name, nbytes)
        except EngineError:
            self._release()
            raise

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> DeviceLogits:
        """Append a right-padded chunk to every row; see :meth:`llmc.runtimes.session.engine.Session.forward`."""
        batch, chunk = input_ids.shape
        valid = valid_tokens(self.rows.lengths, self.rows.capacity, input_ids, lengths)
        self.rows.take_turn()
        by_row = chunk > 1 and batch > 1 and bool(self.rows.lengths.any()) and not self._traits.ragged_chunks
        needed = int((self.rows.lengths + valid).max()) if by_row else int(self.rows.lengths.max()) + chunk
        if needed > self.rows.capacity:
            raise EngineError(
                f"a row would hold {needed} tokens, padding included, but the cache has room for "
                f"{self.rows.capacity}; reset the session with a larger capacity"
            )
        rows = chunk if self.info.logits == "all" else 1
        if chunk == 1 and self.rows.lengths.any():
            # A row without a token keeps its length.
            self._memory.upload(input_ids, self.rows.lengths, np.ones_like(valid))
            self.recorder.step().launch()
        elif by_row:
            self._run_rows(input_ids, valid, rows)
        elif 0 < self._traits.max_chunk < chunk:
            self._run_pieces(input_ids, valid, needed)
        else:
            self._run_chunk(input_ids, valid, rows, needed)
        self.rows.lengths = self.rows.lengths + valid
        read = partial(self._read_logits, (batch, rows, self.info.vocab_size))
        return DeviceLogits(read, valid - 1, partial(self._most_likely, batch) if rows == 1 else None)

    def _run_chunk(self, input_ids: Int64Array, valid: Int64Array, rows: int, total: int) -> None:
        """The chunk in all rows at once."""
        batch, chunk = input_ids.shape
        self._reserve("input_ids", input_ids.nbytes)
        self._reserve("logits", batch * rows * self._memory.logits_row)
        last = chunk - 1 if self._traits.ends_with_chunk else 0
        self._memory.upload(input_ids, self.rows.lengths + last, valid)
        values = self._memory.values(batch, chunk, rows)
        if self._chunk_binding is None:
            self._chunk_binding = self._io.bind(values, self._memory.cache, batch, self.rows.capacity, total)
        else:
            self._io.rebind(self._chunk_binding, values, total)
        self._io.run(self._chunk_binding)

    def _run_pieces(self, input_ids: Int64Array, valid: Int64Array, total: int) -> None:
        """A chunk wider than the decoder takes: a row's logits are those of the piece in which it ends."""
        batch, width = len(valid), self._traits.max_chunk
        if self.info.logits == "all":
            raise EngineError(
                f"a chunk of {input_ids.shape[1]} tokens is more than the {width} that this engine was built for, "
                "and it gives logits of all; pass shorter chunks, or build it again for longer ones"
            )
        before, size = self.rows.lengths, self._memory.logits_row
        kept = self._device.allocate(batch * size)
        try:
            for start in range(0, input_ids.shape[1], width):
                piece = np.ascontiguousarray(input_ids[:, start : start + width])
                counts = np.clip(valid - start, 0, piece.shape[1])
                self._run_chunk(piece, counts, 1, total)
                self.rows.lengths = self.rows.lengths + counts
                for row in np.flatnonzero((counts > 0) & (start + counts == valid)):
                    made, place = (part(whole, int(row) * size, size) for whole in (self._buffers["logits"], kept))
                    self._device.copy_pieces(made, place, 1, size, (size, size))
            self._device.copy_pieces(kept, self._buffers["logits"], batch, size, (size, size))
        finally:
            self.rows.lengths = before
            self._device.free(kept)

    def _run_rows(self, input_ids: Int64Array, valid: Int64Array, rows: int) -> None:
        """The chunk row by row, without its padding: the kernel takes one row where several tokens meet a past."""
        batch, chunk = input_ids.shape
        self._reserve("input_ids", input_ids.nbytes)
        self._reserve("logits", batch * rows * self._memory.logits_row)
        self._memory.upload(input_ids, self.rows.lengths + valid - 1, valid)
        self._device.upload(self._buffers["last_rows"], np.maximum(valid, 1) - 1)  # each row is the only one
        for row in np.flatnonzero(valid):
            count, total = int(valid[row]), int(self.rows.lengths[row] + valid[row])
            own = self._memory.of_row(int(row), chunk, rows, self.rows.capacity)
            values = self._memory.values(1, count, count if rows > 1 else 1, own)
            self._io.run(self._io.bind(values, own, 1, self.rows.capacity, total))

    def _read_logits(self, shape: tuple[int, ...]) -> FloatArray:
        """Copy the last logits to the host, float32."""
        if self._host_logits is None or self._host_logits.shape != shape:
            self._host_logits = self._device.host_array(shape, self._io.logits_type)
        self._device.download(self._buffers["logits"], self._host_logits)
        self._device.wait()
        return self._host_logits.astype(np.float32)

    def _most_likely(self, batch: int) -> Int64Array:
        """Arg-max of the last logits [batch, 1, vocab_size], on the device where it can; [batch] int64."""
        if self._samplers is None:
            logits = self._read_logits((batch, 1, self.info.vocab_size))[:, 0]
            return np.where(np.isfinite(logits.max(axis=1)), logits.argmax(axis=1), -1).astype(np.int64)
        return self._samplers.most_likely(self._buffers["logits"], batch)

    def device_bytes(self) -> int | None:
        """Memory of the GPU in use now, by whatever program; None on the host."""
        return self._device.used_bytes()

    def close(self) -> None:
        """Free the cache and the engine."""
        self.rows.take_turn()
        self._release()
        if self._samplers is not None:
            self._samplers.close()
        self._host_logits = None
        self._io.close()
