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

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.decode_loop import (
    MOST_RECORDINGS,
    RUNS_BEFORE_RECORDING,
    DecodeLoop,
    SamplerCache,
    keep_newest,
    kind_of,
)
from llmc.runtimes.device.decoder import Decoder
from llmc.runtimes.device.interface import Array, Buffer, Device, Recording
from llmc.runtimes.device.logits import DeviceLogits
from llmc.runtimes.device.sampler import supports
from llmc.runtimes.device.session_buffers import SessionBuffers, part
from llmc.runtimes.session.capabilities import RowEditor, RowState, TokenChooser
from llmc.runtimes.session.engine import EngineInfo, FloatArray, Int64Array, require_room
from llmc.runtimes.session.sampling_params import SamplingParams

CAPACITY_STEP = 64
"""Capacities are rounded up to a multiple, so that requests of similar length share buffers and recordings."""


@dataclass(frozen=True)
class StepBuffers:
    """What one decode step reads and writes, beside the cache.

    Attributes:
        input_ids: [batch, 1] int64.
        lengths: Tokens held before the step, [batch], in the decoder's type.
        logits: [batch, 1, vocab_size].
    """

    input_ids: Buffer
    lengths: Buffer
    logits: Buffer


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
        self._device, self._info, self._samplers, self._fits = device, info, samplers, fits
        self._io, self._traits = decoder, decoder.traits
        self._lengths: Int64Array = np.zeros(0, np.int64)
        self._capacity = 0
        self._shape = (0, 0)
        self._memory = SessionBuffers(device, decoder, info.vocab_size)
        self._buffers = self._memory.named
        self._recordings: dict[tuple[int, int], Recording] = {}
        self._step_binding: Any = None
        self._chunk_binding: Any = None
        self._host_logits: Array | None = None
        # The loop refers to the session, and memory that waits for the collector of cycles is a GPU's.
        self._loop: weakref.ref[DecodeLoop] | None = None

    @property
    def info(self) -> EngineInfo:
        """What this session can do."""
        return self._info

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self._device

    @property
    def lengths(self) -> Int64Array:
        """Tokens that each row holds, [batch] int64."""
        return self._lengths.copy()

    @property
    def rows(self) -> RowEditor | None:
        """Edits single rows."""
        return None

    @property
    def chooser(self) -> TokenChooser | None:
        """The session itself, where it has samplers and the graph gives the logits that they take."""
        return self if self._samplers is not None and self._info.logits == "last" else None

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache and make room for ``capacity`` tokens in each of ``batch`` rows.

        Raises:
            EngineError: rows or capacity are beyond what the engine can run, or the device's memory does not suffice.
        """
        require_room(self._info, batch, capacity)
        self._end_loop()
        rounded = self._rounded(capacity)
        if (batch, rounded) != self._shape:
            self._make_room(batch, rounded)
        self._lengths = np.zeros(batch, np.int64)

    def grow(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in each row, keeping what the rows hold; the cache is copied.

        Raises:
            EngineError: the capacity is beyond what the engine can run, or memory for both caches does not suffice;
                the session then holds no rows.
        """
        batch, old = self._shape
        require_room(self._info, batch, capacity)
        rounded = self._rounded(capacity)
        if rounded <= old:
            return
        self._end_loop()
        self._forget_addresses()
        self._load(rounded)
        try:
            self._memory.move_cache(batch, old, rounded)
        except EngineError:
            self._release()
            raise
        self._shape, self._capacity = (batch, rounded), rounded

    def _rounded(self, capacity: int) -> int:
        """What is allocated for a capacity, which the engine's context admits."""
        if self._traits.capacities:
            return next(built for built in self._traits.capacities if built >= capacity)
        return min(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP, self._info.max_context)

    def _load(self, capacity: int) -> None:
        """Let the decoder be the one for this capacity; where that is another, recordings of the old one go."""
        if self._traits.capacities and capacity != self._shape[1]:
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
        self._shape, self._capacity = (batch, capacity), capacity
        self._step_binding = self._chunk_binding = None

    def _forget_addresses(self) -> None:
        """Drop what was made for buffers that move."""
        self._recordings.clear()
        if self._samplers is not None:
            self._samplers.forget_recordings()
        self._step_binding = self._chunk_binding = None

    def _release(self) -> None:
        """Free all buffers; the session then holds no rows until it is reset."""
        self._forget_addresses()
        self._shape, self._capacity, self._lengths = (0, 0), 0, np.zeros(0, np.int64)
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

    def _end_loop(self) -> None:
        """A decode loop that is still running must not go on over other content."""
        loop = None if self._loop is None else self._loop()
        if loop is not None:
            loop.ended = True
        self._loop = None

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> DeviceLogits:
        """Append a right-padded chunk to every row; see :meth:`llmc.runtimes.session.engine.Session.forward`."""
        batch, chunk = input_ids.shape
        if batch != len(self._lengths):
            raise EngineError(f"the session holds {len(self._lengths)} rows, not {batch}; reset it first")
        self._end_loop()
        valid = np.full(batch, chunk, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        by_row = chunk > 1 and batch > 1 and bool(self._lengths.any()) and not self._traits.ragged_chunks
        needed = int((self._lengths + valid).max()) if by_row else int(self._lengths.max()) + chunk
        if needed > self._capacity:
            raise EngineError(
                f"a row would hold {needed} tokens, padding included, but the cache has room for {self._capacity}; "
                "reset the session with a larger capacity"
            )
        rows = chunk if self._info.logits == "all" else 1
        if chunk == 1 and self._lengths.min() > 0:
            self._decode_once(input_ids, valid)
        elif by_row:
            self._run_rows(input_ids, valid, rows)
        elif 0 < self._traits.max_chunk < chunk:
            self._run_pieces(input_ids, valid, needed)
        else:
            self._run_chunk(input_ids, valid, rows, needed)
        self._lengths = self._lengths + valid
        return DeviceLogits(self, (batch, rows, self._info.vocab_size), valid - 1)

    def _run_chunk(self, input_ids: Int64Array, valid: Int64Array, rows: int, total: int) -> None:
        """The chunk in all rows at once."""
        batch, chunk = input_ids.shape
        self._reserve("input_ids", input_ids.nbytes)
        self._reserve("logits", batch * rows * self._memory.logits_row)
        last = chunk - 1 if self._traits.ends_with_chunk else 0
        self._memory.upload(input_ids, self._lengths + last, valid)
        if self._chunk_binding is None:
            self._chunk_binding = self._bind(batch, chunk, rows, total)
        else:
            self._io.rebind(self._chunk_binding, self._memory.values(batch, chunk, rows), total)
        self._io.run(self._chunk_binding)

    def _run_pieces(self, input_ids: Int64Array, valid: Int64Array, total: int) -> None:
        """A chunk wider than the decoder takes: a row's logits are those of the piece in which it ends."""
        batch, width = len(valid), self._traits.max_chunk
        if self._info.logits == "all":
            raise EngineError(
                f"a chunk of {input_ids.shape[1]} tokens is more than the {width} that this engine was built for, "
                "and it gives logits of all; pass shorter chunks, or build it again for longer ones"
            )
        before, size = self._lengths, self._memory.logits_row
        kept = self._device.allocate(batch * size)
        try:
            for start in range(0, input_ids.shape[1], width):
                piece = np.ascontiguousarray(input_ids[:, start : start + width])
                counts = np.clip(valid - start, 0, piece.shape[1])
                self._run_chunk(piece, counts, 1, total)
                self._lengths = self._lengths + counts
                for row in np.flatnonzero((counts > 0) & (start + counts == valid)):
                    made, place = (part(whole, int(row) * size, size) for whole in (self._buffers["logits"], kept))
                    self._device.copy_pieces(made, place, 1, size, (size, size))
            self._device.copy_pieces(kept, self._buffers["logits"], batch, size, (size, size))
        finally:
            self._lengths = before
            self._device.free(kept)

    def _run_rows(self, input_ids: Int64Array, valid: Int64Array, rows: int) -> None:
        """The chunk row by row, without its padding: the kernel takes one row where several tokens meet a past."""
        batch, chunk = input_ids.shape
        self._reserve("input_ids", input_ids.nbytes)
        self._reserve("logits", batch * rows * self._memory.logits_row)
        self._memory.upload(input_ids, self._lengths + valid - 1, valid)
        self._device.upload(self._buffers["last_rows"], np.maximum(valid, 1) - 1)  # each row is the only one
        for row in np.flatnonzero(valid):
            count, total = int(valid[row]), int(self._lengths[row] + valid[row])
            own = self._memory.of_row(int(row), chunk, rows, self._capacity)
            values = self._memory.values(1, count, count if rows > 1 else 1, own)
            self._io.run(self._io.bind(values, own, 1, self._capacity, total))

    def _decode_once(self, input_ids: Int64Array, valid: Int64Array) -> None:
        """One token per row, the launches queued as they were recorded; a row without a token keeps its length."""
        self._memory.upload(input_ids, self._lengths, np.ones_like(valid))
        self.record_step().launch()

    def _bind(self, batch: int, chunk: int, rows: int, total: int) -> Any:
        return self._io.bind(
            self._memory.values(batch, chunk, rows), self._memory.cache, batch, self._capacity, total
        )

    def record_step(self) -> Recording:
        """The recorded decode step of the current rows and capacity."""
        if self._shape not in self._recordings:
            for _ in range(RUNS_BEFORE_RECORDING):
                self.run_step()
            self._device.wait()
            keep_newest(self._recordings, MOST_RECORDINGS - 1)
            self._recordings[self._shape] = self._device.record(self.run_step)
        return self._recordings[self._shape]

    def run_step(self) -> None:
        """Queue a decode step on what lies in :meth:`step_buffers`, launch by launch."""
        if self._step_binding is None:
            batch = self._shape[0]
            # The total stays what it was when the launches were recorded, so it is the most that there can be.
            self._step_binding = self._bind(batch, 1, 1, self._capacity)
        self._io.run(self._step_binding)

    def step_buffers(self) -> StepBuffers:
        """Where a decode step reads and writes."""
        return StepBuffers(self._buffers["input_ids"], self._buffers["lengths"], self._buffers["logits"])

    def can_choose(self, settings: Sequence[SamplingParams]) -> bool:
        """Whether the device has a sampler for these rows: one kind for all of them, seeds apart."""
        return all(map(supports, settings)) and len({kind_of(each) for each in settings}) <= 1

    def begin(self, rows: Sequence[RowState | None]) -> DecodeLoop:
        """Go on from the prefill, choosing tokens on the device; a loop before this one ends. See `TokenChooser`."""
        active = [row for row in rows if row is not None]
        if self._samplers is None or not self.can_choose([row.settings for row in active]):
            raise EngineError("these tokens cannot be chosen on the device; choose them on the host")
        if not active or len(rows) != len(self._lengths):
            raise EngineError(
                f"{len(active)} of {len(rows)} rows are to go on in a session of {len(self._lengths)} rows; give an "
                "entry per row, and one at least that takes part"
            )
        needed = self._lengths + [1 if row is None else row.steps_left for row in rows]
        if int(needed.max()) > self._capacity:
            row = int(needed.argmax())
            raise EngineError(
                f"row {row} holds {self._lengths[row]} tokens and would hold {needed[row]}, but the cache has room "
                f"for {self._capacity}; reset the session with a larger capacity"
            )
        tokens = np.array([[0 if row is None else row.token] for row in rows], np.int64)
        self._memory.upload(tokens, self._lengths, np.ones_like(self._lengths))
        self._end_loop()
        loop = DecodeLoop(self, self._samplers, self._shape, rows)
        self._loop = weakref.ref(loop)
        return loop

    def grown(self, lengths: Int64Array) -> None:
        """Told by a decode loop that rows have grown."""
        self._lengths = np.asarray(lengths, np.int64)

    def read_logits(self, shape: tuple[int, ...]) -> FloatArray:
        """Copy the last logits to the host, float32."""
        if self._host_logits is None or self._host_logits.shape != shape:
            self._host_logits = self._device.host_array(shape, self._io.logits_type)
        self._device.download(self._buffers["logits"], self._host_logits)
        self._device.wait()
        return self._host_logits.astype(np.float32)

    def most_likely(self, batch: int) -> Int64Array:
        """Arg-max of the last logits [batch, 1, vocab_size], on the device where it can; [batch] int64."""
        if self._samplers is None:
            logits = self.read_logits((batch, 1, self._info.vocab_size))[:, 0]
            return np.where(np.isfinite(logits.max(axis=1)), logits.argmax(axis=1), -1).astype(np.int64)
        return self._samplers.most_likely(self._buffers["logits"], batch)

    def device_bytes(self) -> int | None:
        """Memory of the GPU in use now, by whatever program; None on the host."""
        return self._device.used_bytes()

    def close(self) -> None:
        """Free the cache and the engine."""
        self._end_loop()
        self._release()
        if self._samplers is not None:
            self._samplers.close()
        self._host_logits = None
        self._io.close()
