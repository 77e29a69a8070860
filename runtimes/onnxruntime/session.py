"""A session on ONNX Runtime: one loaded graph, one KV cache, no allocation per token.

In: an ``InferenceSession`` and what its manifest says. Out: the :class:`Session` protocol.

Two kinds of graph run behind it:

* fused: rows start at slot 0 of the cache; the mask only says how many tokens each row holds and how many of this
  chunk are valid. ``shared`` caches are one buffer bound once as past and present; ``grow`` caches go round.
* unfused (portable, or a target that kept the attention's body): slots and columns of the mask correspond one to one.
  The cache is kept left-padded: after a chunk in which rows differ, each row's tokens move to the end.

Whether a graph asks for ``position_ids`` does not tell the two apart: a fused one does where it rotates outside.

Beside keys and values a cache may hold states (of convolutions, of recurrences), whose shape is fixed. They start as
zeros; each has two buffers, and what one step writes the next one reads.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.contract import ATTENTION_MASK, INPUT_IDS, LOGITS, PAST, POSITION_IDS, Contract
from llmc.compiler.base.errors import EngineError, first_line
from llmc.runtimes.device.decoder import CacheTensor
from llmc.runtimes.device.graph_io import ELEMENT_TYPES, cache_tensor
from llmc.runtimes.session.capabilities import CacheSpoiler, RowEditor
from llmc.runtimes.session.engine import (
    EngineInfo,
    Int64Array,
    Session,
    chunk_positions,
    require_prefix,
    require_room,
    valid_tokens,
)
from llmc.runtimes.session.host_logits import HostLogits


class OnnxRuntimeSession(Session, RowEditor, CacheSpoiler):
    """One graph and one cache; see :class:`llmc.runtimes.session.engine.Session`."""

    def __init__(self, inference: Any, info: EngineInfo, contract: Contract) -> None:
        """Wrap a loaded graph, and call it as its contract says."""
        self._inference = inference
        self._contract, self._fused = contract, contract.rows == "slot0"
        # In a shared cache rows can be computed alone.
        self.mixes_lengths = contract.cache == "grow"
        self.info = info
        inputs = {item.name: item for item in inference.get_inputs()}
        self._positions = POSITION_IDS in inputs
        past = [cache_tensor(item) for name, item in inputs.items() if name.startswith(PAST)]
        self._growing = [tensor for tensor in past if tensor.axis is not None]
        self._states = [tensor for tensor in past if tensor.axis is None]
        self.layers = tuple(sorted({tensor.layer for tensor in self._growing if tensor.layer is not None}))
        self._cache: list[Any] = []
        self._state_buffers: list[tuple[_Buffer, _Buffer]] = []
        self._logits_type = ELEMENT_TYPES[inference.get_outputs()[0].type][1]
        self._lengths: Int64Array = np.zeros(0, np.int64)
        self._capacity = 0
        self._binding: Any = None
        self._chunk = (0, 0)
        self._mask: Int64Array = np.zeros((0, 0), np.int64)

    @property
    def lengths(self) -> Int64Array:
        """Tokens that each row holds, [batch] int64."""
        return self._lengths.copy()

    @property
    def rows(self) -> RowEditor | None:
        """The session itself, unless its graph takes no chunk that a row could begin with beside others."""
        return self if self._contract.ragged_chunks or self._contract.cache == "shared" else None

    @property
    def spoiler(self) -> CacheSpoiler | None:
        """The session itself, where its cache holds keys and values alone."""
        return None if self._states or not self.layers else self

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache; see :meth:`llmc.runtimes.session.engine.Session.reset`."""
        require_room(self.info, batch, capacity)
        self._lengths = np.zeros(batch, np.int64)
        anew = (batch, capacity) != self._mask.shape
        try:
            if anew:
                self._capacity, self._binding, self._chunk = capacity, self._inference.io_binding(), (0, 0)
                self._mask = np.ones((batch, capacity), np.int64)
                self._mask_flat = np.ones(batch * capacity, np.int64)
            if self._contract.cache == "grow":
                self._bind_cache([_ort_value(_zeros(tensor, batch, 0)) for tensor in self._growing])
            elif anew:
                self._bind_shared_cache(batch, capacity)
            self._state_buffers = [
                (_Buffer(_zeros(tensor, batch, 0)), _Buffer(_zeros(tensor, batch, 0))) for tensor in self._states
            ]
            self._bind_states()
        except MemoryError as error:
            size = batch * capacity * self.info.cache_bytes_per_token
            raise EngineError(f"a KV cache of {size / 2**30:.1f} GiB does not fit into memory") from error

    def _bind_shared_cache(self, batch: int, capacity: int) -> None:
        self._cache = [_zeros(tensor, batch, capacity) for tensor in self._growing]
        for tensor, array in zip(self._growing, self._cache, strict=True):
            buffer = _ort_value(array)
            self._binding.bind_ortvalue_input(tensor.past, buffer)
            self._binding.bind_ortvalue_output(tensor.present, buffer)

    def _bind_cache(self, values: list[Any]) -> None:
        """What a cache that grows holds from now on."""
        self._cache = values
        for tensor, value in zip(self._growing, values, strict=True):
            self._binding.bind_ortvalue_input(tensor.past, value)
            self._binding.bind_output(tensor.present, "cpu")

    def _bind_states(self) -> None:
        for tensor, (read, written) in zip(self._states, self._state_buffers, strict=True):
            self._binding.bind_ortvalue_input(tensor.past, read.value)
            self._binding.bind_ortvalue_output(tensor.present, written.value)

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> HostLogits:
        """Append a right-padded chunk to every row; see :meth:`llmc.runtimes.session.engine.Session.forward`."""
        chunk = input_ids.shape[1]
        valid = valid_tokens(self._lengths, self._capacity, input_ids, lengths)
        full = lengths is None
        if self._runs_alone(valid, chunk):
            return self._forward_rows(input_ids, valid)
        ragged = chunk > 1 and not full and bool((valid != chunk).any())
        if ragged and self._lengths.any() and not self._contract.ragged_chunks:
            raise EngineError(
                "rows of unequal length can only be continued in chunks by a graph made with ONNX Runtime 1.32 or "
                "newer; optimize again with it, or prefill each prompt whole"
            )
        self._bind_chunk(input_ids)
        mask = self._fused_mask(valid, chunk, full) if self._fused else self._slot_mask(valid, chunk)
        self._binding.bind_ortvalue_input(ATTENTION_MASK, _ort_value(mask))
        if self._positions:
            positions = chunk_positions(self._lengths, valid, chunk)
            self._binding.bind_ortvalue_input(POSITION_IDS, _ort_value(positions))
        self._run(self._binding)
        before = self._lengths.copy()
        self._lengths += valid
        if self._contract.cache == "grow":
            self._carry_cache(before, valid, chunk)
        self._turn_states()
        return HostLogits(self._logits.astype(np.float32, copy=False), valid - 1)

    def _runs_alone(self, valid: Int64Array, chunk: int) -> bool:
        """Whether a chunk runs row by row: where others would only pad it, or the graph takes no other."""
        later = self._contract.cache == "shared" and chunk > 1 and len(valid) > 1 and bool(self._lengths.any())
        return later and (np.count_nonzero(valid) == 1 or not self._contract.ragged_chunks)

    def _forward_rows(self, input_ids: Int64Array, valid: Int64Array) -> HostLogits:
        """Each row that has tokens on its own part of cache and states; the others cost nothing."""
        shape = (len(valid), input_ids.shape[1] if self._contract.logits == "all" else 1, self.info.vocab_size)
        logits = np.zeros(shape, self._logits_type)
        for row in np.flatnonzero(valid).tolist():
            binding, own, count = self._inference.io_binding(), slice(row, row + 1), int(valid[row])
            for tensor, array in zip(self._growing, self._cache, strict=True):
                binding.bind_ortvalue_input(tensor.past, _ort_value(array[own]))
                binding.bind_ortvalue_output(tensor.present, _ort_value(array[own]))
            for tensor, (read, written) in zip(self._states, self._state_buffers, strict=True):
                binding.bind_ortvalue_input(tensor.past, _ort_value(read.array[own]))
                binding.bind_ortvalue_output(tensor.present, _ort_value(written.array[own]))
            feeds = {INPUT_IDS: np.ascontiguousarray(input_ids[own, :count])}
            feeds[ATTENTION_MASK] = np.ones((1, int(self._lengths[row]) + count), np.int64)
            if self._positions:
                feeds[POSITION_IDS] = chunk_positions(self._lengths[own], valid[own], count)
            for name, array in feeds.items():
                binding.bind_ortvalue_input(name, _ort_value(array))
            binding.bind_ortvalue_output(LOGITS, _ort_value(logits[own, : count if shape[1] > 1 else 1]))
            self._run(binding)
            for read, written in self._state_buffers:
                read.array[own] = written.array[own]
            self._lengths[row] += count
        return HostLogits(logits.astype(np.float32, copy=False), valid - 1)

    def _run(self, binding: Any) -> None:
        try:
            self._inference.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from error

    def _turn_states(self) -> None:
        """What this step wrote the next one reads."""
        self._state_buffers = [(written, read) for read, written in self._state_buffers]
        # A fused graph's mask gives an empty row a token (see _fused_mask), which must not stay in its state.
        if self._fused and (empty := self._lengths == 0).any():
            for read, _ in self._state_buffers:
                read.array[empty] = 0
        self._bind_states()

    def _bind_chunk(self, input_ids: Int64Array) -> None:
        """Bind buffers of the chunk's shape; the decode step finds them bound."""
        if input_ids.shape != self._chunk:
            batch, chunk = self._chunk = input_ids.shape
            self._ids = np.empty((batch, chunk), np.int64)
            rows = chunk if self._contract.logits == "all" else 1
            self._logits: npt.NDArray[Any] = np.empty((batch, rows, self.info.vocab_size), self._logits_type)
            self._binding.bind_ortvalue_input(INPUT_IDS, _ort_value(self._ids))
            self._binding.bind_ortvalue_output(LOGITS, _ort_value(self._logits))
        np.copyto(self._ids, input_ids)

    def _fused_mask(self, valid: Int64Array, chunk: int, full: bool) -> Int64Array:
        """Row sums are the tokens held, sums over the last ``chunk`` columns the valid ones of this chunk."""
        batch, before = len(valid), int(self._lengths.max())
        width = before + chunk
        if width > self._capacity and self._contract.cache == "shared":
            # The kernel wants room for the chunk's columns after the longest row, be they valid or not.
            raise EngineError(
                f"a row holds {before} tokens and the chunk has {chunk} columns, more than the cache's "
                f"{self._capacity}; reset the session with a larger capacity"
            )
        if batch == 1 and full:
            return self._mask[:, :width]
        if self._mask_flat.size < batch * width:
            self._mask_flat = np.ones(batch * width, np.int64)
        mask = self._mask_flat[: batch * width].reshape(batch, width)
        columns = np.arange(width)
        np.less(columns[None, :before], self._lengths[:, None], out=mask[:, :before], casting="unsafe")
        # The kernel takes no row without a token; an empty one is given one, which its first own token overwrites.
        counted = np.maximum(valid, self._lengths == 0)
        np.less(columns[None, :chunk], counted[:, None], out=mask[:, before:], casting="unsafe")
        return mask

    def _slot_mask(self, valid: Int64Array, chunk: int) -> Int64Array:
        """Ones for a left-padded past, then ones for the valid tokens of the chunk."""
        past = int(self._lengths.max())
        before = np.arange(past) >= past - self._lengths[:, None]
        return np.concatenate([before, np.arange(chunk) < valid[:, None]], axis=1).astype(np.int64)

    def _carry_cache(self, before: Int64Array, valid: Int64Array, chunk: int) -> None:
        """This step's present is the next step's past, after a ragged chunk without the gaps in it."""
        # A binding gives its outputs in the order in which they were bound, not in that of the graph: logits last.
        values = self._binding.get_outputs()[: len(self._growing)]
        if not self._fused and bool((valid != chunk).any()):
            values = self._moved(values, np.arange(len(before)), before.max() - before)
        self._bind_cache(values)

    def _moved(self, values: list[Any], origins: Int64Array, begins: Int64Array) -> list[Any]:
        """Caches whose rows have the tokens of the rows ``origins`` [batch] from the slots ``begins`` [batch] on."""
        return [
            _ort_value(_rows_moved(value.numpy(), origins, begins, self._lengths, tensor.axis or 0, self._fused))
            for tensor, value in zip(self._growing, values, strict=True)
        ]

    def hold(self, row: int, source: int, length: int) -> None:
        """Move tokens within the cache; see :class:`RowEditor`."""
        require_prefix(self._lengths, source, length, states=bool(self._states))
        before = self._lengths.copy()
        self._lengths[row] = length
        for read, _ in self._state_buffers:
            read.array[row] = read.array[source] if length else 0
        if self._contract.cache == "shared":
            for tensor, array in zip(self._growing, self._cache, strict=True):
                slots = np.moveaxis(array, tensor.axis or 0, 1)
                slots[row, :length] = slots[source, :length]
        elif length or before.max() != self._lengths.max():
            begins = np.zeros_like(before) if self._fused else before.max() - before
            begins[row], origins = begins[source], np.arange(len(before))
            origins[row] = source
            self._bind_cache(self._moved(self._cache, origins, begins))

    def spoil(self, position: int, layers: Collection[int], seed: int) -> None:
        """Let keys and values be others; see :class:`CacheSpoiler`. A row alone begins at slot 0."""
        draw = np.random.default_rng(seed)
        shared = self._contract.cache == "shared"
        arrays = self._cache if shared else [value.numpy().copy() for value in self._cache]
        for tensor, array in zip(self._growing, arrays, strict=True):
            if tensor.layer in layers:
                tensor.spoil(array, position, draw)
        if not shared:
            self._bind_cache([_ort_value(array) for array in arrays])

    def close(self) -> None:
        """Free the graph and the cache."""
        self._binding = None
        self._inference = None


class _Buffer:
    """Memory of a state, as NumPy and as ONNX Runtime see it."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array, self.value = array, _ort_value(array)


def _zeros(tensor: CacheTensor, batch: int, slots: int) -> npt.NDArray[Any]:
    """An empty one."""
    return np.zeros(tensor.shape(batch, slots), tensor.dtype)


def _rows_moved(
    cache: npt.NDArray[Any], origins: Int64Array, begins: Int64Array, counts: Int64Array, axis: int, fused: bool
) -> npt.NDArray[Any]:
    """A cache as long as its longest row, whose row ``b`` holds ``counts[b]`` tokens of the row ``origins[b]``.

    Args:
        cache: [batch, …, slots, …], slots along ``axis``.
        origins, begins, counts: [batch]; ``begins`` is the first slot that is taken.
        fused: Rows begin at slot 0; else they end at the last.
    """
    shape = list(cache.shape)
    shape[axis] = total = int(counts.max())
    moved = np.zeros(shape, cache.dtype)
    source, target = np.moveaxis(cache, axis, 1), np.moveaxis(moved, axis, 1)
    for row, (origin, begin, count) in enumerate(zip(origins, begins, counts, strict=True)):
        at = 0 if fused else total - count
        target[row, at : at + count] = source[origin, begin : begin + count]
    return moved


def _ort_value(array: npt.NDArray[Any]) -> Any:
    """A view of ``array`` for ONNX Runtime; it keeps the array alive and copies nothing."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)
