"""A session whose KV cache, inputs and logits live on a device: ONNX Runtime's CUDA provider, or the host in tests.

In: a loaded ``engine.onnx`` (lengths are inputs, see ``passes/take_lengths.py``) and a device. Out: the
:class:`~llmc.runtimes.engine.Session` protocol, and :meth:`DeviceSession.decode_loop`, which decodes without the host
between two steps.

Every buffer is allocated by ``reset`` and stays where it is while it is large enough, so a decode step has fixed
addresses and is recorded once per (rows, capacity): its launches are then queued as one. Smaller batches use the
front of the same buffers; where a larger one is needed, all are freed first, so that old and new need not fit
together. A prompt's chunk is run without a recording, since its shape is new each time.

The first chunk is appended to every row as if all its columns were valid: the lengths that the graph gets end with
the chunk. What padding writes into the cache lies behind the row's own tokens, where no valid token looks, and is
overwritten by the next ones. Later chunks of several tokens run row by row, each row on its own part of the buffers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmc.compiler.errors import EngineError
from llmc.runtimes.device.decode_loop import (
    MOST_RECORDINGS,
    RUNS_BEFORE_RECORDING,
    DecodeLoop,
    SamplerCache,
    keep_newest,
)
from llmc.runtimes.device.graph_io import CACHE_INPUT, GraphIO
from llmc.runtimes.device.interface import Array, Buffer, Device, Recording
from llmc.runtimes.engine import EngineInfo, FloatArray, Int64Array, require_room
from llmc.runtimes.sampling import SamplingParams

ALIGNMENT = 256
"""Bytes to which a layer's cache is aligned, as a device aligns an allocation."""
CAPACITY_STEP = 64
"""Capacities are rounded up to a multiple, so that requests of similar length share buffers and recordings."""


@dataclass(frozen=True)
class StepBuffers:
    """What one decode step reads and writes, beside the cache.

    Attributes:
        input_ids: [batch, 1] int64.
        seqlens_k: Tokens held before the step, [batch] int32.
        logits: [batch, 1, vocab_size].
    """

    input_ids: Buffer
    seqlens_k: Buffer
    logits: Buffer


class DeviceSession:
    """One engine and one KV cache on a device."""

    def __init__(
        self,
        inference: Any,
        info: EngineInfo,
        device: Device,
        samplers: SamplerCache,
        fits: Callable[[int, int], None] | None = None,
    ) -> None:
        """Wrap a loaded graph.

        Args:
            inference: ONNX Runtime's session, computing on the device's queue and not waiting for it.
            info: What the engine is.
            device: Where the buffers go.
            samplers: Makes the graphs that choose tokens.
            fits: Called with (batch, capacity) before anything is allocated; raises EngineError.
        """
        self._device, self._info, self._samplers, self._fits = device, info, samplers, fits
        self._io = GraphIO(inference, device)
        self._lengths: Int64Array = np.zeros(0, np.int64)
        self._capacity = 0
        self._shape = (0, 0)
        self._buffers: dict[str, Buffer] = {}
        self._cache: Buffer | None = None
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

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache and make room for ``capacity`` tokens in each of ``batch`` rows.

        Raises:
            EngineError: the capacity is beyond what the engine can run, or the device's memory does not suffice.
        """
        require_room(self._info, batch, capacity)
        self._end_loop()
        rounded = min(-(-capacity // CAPACITY_STEP) * CAPACITY_STEP, self._info.max_context)
        if (batch, rounded) != self._shape:
            self._make_room(batch, rounded)
        self._lengths = np.zeros(batch, np.int64)

    def _make_room(self, batch: int, capacity: int) -> None:
        """Buffers for so many rows and slots: those that are there, or, where one is too small, all anew."""
        cache = {tensor.past: tensor.nbytes(batch, capacity) for tensor in self._io.cache}
        sizes = {"input_ids": batch * 8, "seqlens_k": batch * 4, "chunk_lengths": batch * 8, "last_rows": batch * 8}
        sizes["logits"] = batch * self._logits_row
        wanted = [*cache.items(), *sizes.items()]
        if any(name not in self._buffers or self._buffers[name].nbytes < size for name, size in wanted):
            self._release()
            if self._fits is not None:
                self._fits(batch, capacity)
            for name, size in sizes.items():
                self._buffers[name] = self._device.allocate(size)
            self._allocate_cache(cache)
        self._shape, self._capacity = (batch, capacity), capacity
        self._step_binding = self._chunk_binding = None

    def _allocate_cache(self, sizes: Mapping[str, int]) -> None:
        """One allocation for all layers: a device rounds each up, by as much as a short cache is long."""
        starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())])
        self._cache = self._device.allocate(int(starts[-1]))
        for (name, size), start in zip(sizes.items(), starts, strict=False):
            self._buffers[name] = _part(self._cache, int(start), size)

    def _forget_addresses(self) -> None:
        """Drop what was made for buffers that move."""
        self._recordings.clear()
        self._samplers.forget_recordings()
        self._step_binding = self._chunk_binding = None

    def _release(self) -> None:
        """Free all buffers; the session then holds no rows until it is reset."""
        self._forget_addresses()
        self._shape, self._capacity, self._lengths = (0, 0), 0, np.zeros(0, np.int64)
        for name in [name for name in self._buffers if CACHE_INPUT.match(name)]:
            del self._buffers[name]
        if self._cache is not None:
            self._device.free(self._cache)
            self._cache = None
        while self._buffers:
            self._device.free(self._buffers.popitem()[1])

    def _reserve(self, name: str, nbytes: int) -> None:
        """Let a buffer have at least so many bytes."""
        if self._buffers[name].nbytes >= nbytes:
            return
        self._forget_addresses()
        self._device.free(self._buffers.pop(name))
        try:
            self._buffers[name] = self._device.allocate(nbytes)
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
        """Append a right-padded chunk to every row; see :meth:`llmc.runtimes.engine.Session.forward`."""
        batch, chunk = input_ids.shape
        if batch != len(self._lengths):
            raise EngineError(f"the session holds {len(self._lengths)} rows, not {batch}; reset it first")
        self._end_loop()
        valid = np.full(batch, chunk, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        by_row = chunk > 1 and batch > 1 and bool(self._lengths.any())
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
        else:
            self._run_chunk(input_ids, valid, rows, needed)
        self._lengths = self._lengths + valid
        return DeviceLogits(self, (batch, rows, self._info.vocab_size), valid - 1)

    def _run_chunk(self, input_ids: Int64Array, valid: Int64Array, rows: int, total: int) -> None:
        """The chunk in all rows at once."""
        batch, chunk = input_ids.shape
        self._reserve("input_ids", input_ids.nbytes)
        self._reserve("logits", batch * rows * self._logits_row)
        self._upload(input_ids, self._lengths + chunk - 1, valid)
        if self._chunk_binding is None:
            self._chunk_binding = self._bind(batch, chunk, rows, total)
        else:
            self._io.rebind(self._chunk_binding, self._values(batch, chunk, rows), total)
        self._io.run(self._chunk_binding)

    def _run_rows(self, input_ids: Int64Array, valid: Int64Array, rows: int) -> None:
        """The chunk row by row, without its padding: the kernel takes one row where several tokens meet a past."""
        batch, chunk = input_ids.shape
        self._reserve("input_ids", input_ids.nbytes)
        self._reserve("logits", batch * rows * self._logits_row)
        self._upload(input_ids, self._lengths + valid - 1, valid)
        self._device.upload(self._buffers["last_rows"], np.maximum(valid, 1) - 1)  # each row is the only one
        whole = self._buffers
        for row in np.flatnonzero(valid):
            count, total = int(valid[row]), int(self._lengths[row] + valid[row])
            places = {
                "input_ids": chunk * 8,
                "seqlens_k": 4,
                "chunk_lengths": 8,
                "last_rows": 8,
                "logits": rows * self._logits_row,
            }
            places |= {tensor.past: tensor.nbytes(1, self._capacity) for tensor in self._io.cache}
            part = {name: _part(whole[name], int(row) * size, size) for name, size in places.items()}
            shapes = {"input_ids": (1, count), "seqlens_k": (1,), "chunk_lengths": (1,), "last_rows": (1,)}
            shapes["logits"] = (1, count if rows > 1 else 1, self._info.vocab_size)
            values = {name: (part[name], shape) for name, shape in shapes.items()}
            self._io.run(self._io.bind(values, part, 1, self._capacity, total))

    @property
    def _logits_row(self) -> int:
        """Bytes of the logits of one position."""
        return self._info.vocab_size * self._io.logits_type.itemsize

    def _decode_once(self, input_ids: Int64Array, valid: Int64Array) -> None:
        """One token per row, the launches queued as they were recorded; a row without a token keeps its length."""
        self._upload(input_ids, self._lengths, np.ones_like(valid))
        self.record_step().launch()

    def _upload(self, input_ids: Int64Array, seqlens: Int64Array, valid: Int64Array) -> None:
        self._device.upload(self._buffers["input_ids"], np.asarray(input_ids, np.int64))
        self._device.upload(self._buffers["seqlens_k"], seqlens.astype(np.int32))
        self._device.upload(self._buffers["chunk_lengths"], np.maximum(valid, 1))
        last_rows = np.arange(len(valid)) * input_ids.shape[1] + np.maximum(valid, 1) - 1
        self._device.upload(self._buffers["last_rows"], last_rows.astype(np.int64))

    def _values(self, batch: int, chunk: int, rows: int) -> dict[str, tuple[Buffer, tuple[int, ...]]]:
        return {
            "input_ids": (self._buffers["input_ids"], (batch, chunk)),
            "seqlens_k": (self._buffers["seqlens_k"], (batch,)),
            "chunk_lengths": (self._buffers["chunk_lengths"], (batch,)),
            "last_rows": (self._buffers["last_rows"], (batch,)),
            "logits": (self._buffers["logits"], (batch, rows, self._info.vocab_size)),
        }

    def _bind(self, batch: int, chunk: int, rows: int, total: int) -> Any:
        cache = {name: buffer for name, buffer in self._buffers.items() if CACHE_INPUT.match(name)}
        return self._io.bind(self._values(batch, chunk, rows), cache, batch, self._capacity, total)

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
        return StepBuffers(self._buffers["input_ids"], self._buffers["seqlens_k"], self._buffers["logits"])

    def decode_loop(
        self,
        first: Int64Array,
        active: Sequence[bool],
        params: SamplingParams,
        row_ids: Sequence[int],
        max_steps: int,
    ) -> DecodeLoop:
        """Go on from the prefill, choosing tokens on the device; a loop before this one ends.

        Args:
            first: The token that each row goes on with, [batch] int64: the generation's token 0.
            active: Rows that are not finished.
            params: How tokens are chosen; see :func:`llmc.runtimes.device.sampler.supports`.
            row_ids: Per row, the number its random draws depend on.
            max_steps: Tokens of the whole generation, token 0 included; at least 2.

        Raises:
            EngineError: there is no step to run, or the rows could grow beyond the capacity.
        """
        if max_steps < 2 or len(first) != len(self._lengths) or not len(first):
            raise EngineError(
                f"a decode loop of {max_steps - 1} steps from {len(first)} tokens on {len(self._lengths)} rows; it "
                "takes at least one step, and one token per row after a prefill"
            )
        if int(self._lengths.max()) + max_steps - 1 > self._capacity:
            raise EngineError(
                f"{max_steps - 1} more tokens than the {int(self._lengths.max())} that a row holds do not fit into "
                f"{self._capacity} slots; reset the session with a larger capacity"
            )
        self._device.upload(self._buffers["input_ids"], np.asarray(first, np.int64).reshape(-1, 1))
        self._device.upload(self._buffers["seqlens_k"], self._lengths.astype(np.int32))
        self._device.upload(self._buffers["chunk_lengths"], np.ones(len(self._lengths), np.int64))
        self._device.upload(self._buffers["last_rows"], np.arange(len(self._lengths), dtype=np.int64))
        self._end_loop()
        loop = DecodeLoop(self, self._samplers, self._shape, active, params, row_ids, max_steps)
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
        """Arg-max of the last logits [batch, 1, vocab_size], computed on the device; [batch] int64."""
        return self._samplers.most_likely(self._buffers["logits"], batch)

    def device_bytes(self) -> int | None:
        """Memory of the GPU in use now, by whatever program; None on the host."""
        return self._device.used_bytes()

    def close(self) -> None:
        """Free the cache and the engine."""
        self._end_loop()
        self._release()
        self._samplers.close()
        self._host_logits = None
        self._io.close()


def _part(buffer: Buffer, offset: int, nbytes: int) -> Buffer:
    owner = None if buffer.owner is None else buffer.owner[offset : offset + nbytes]
    return Buffer(buffer.address + offset, nbytes, owner)


class DeviceLogits:
    """Logits of one forward call, on the device until :meth:`host` copies them."""

    def __init__(self, session: DeviceSession, shape: tuple[int, int, int], last: Int64Array) -> None:
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
