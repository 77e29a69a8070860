"""A session on OpenVINO: one compiled model that keeps its own KV cache.

In: a compiled model and what its manifest says. Out: the :class:`~llmc.runtimes.session.engine.Session` protocol.

Slots of the cache and columns of the attention mask correspond one to one. A chunk appends its columns to every row,
valid or not, so a row's padding stays where it was and the mask has holes; positions count valid tokens only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.openvino.library import last_line
from llmc.runtimes.session.capabilities import RowEditor
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

IDS, MASK, POSITIONS, BEAM = "input_ids", "attention_mask", "position_ids", "beam_idx"


class OpenVinoSession(Session, RowEditor):
    """One model and one cache; see :class:`llmc.runtimes.session.engine.Session`."""

    mixes_lengths = True

    def __init__(self, compiled: Any, info: EngineInfo) -> None:
        """Wrap a ``CompiledModel``, which stays to be asked what it tells of itself."""
        self.compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()
        self._inputs = {name for item in compiled.inputs for name in item.get_names()}
        self.info = info
        self._lengths: Int64Array = np.zeros(0, np.int64)
        self._capacity = 0
        self._columns = 0

    @property
    def lengths(self) -> Int64Array:
        """Tokens that each row holds, [batch] int64."""
        return self._lengths.copy()

    @property
    def rows(self) -> RowEditor | None:
        """The session itself, unless its model keeps states, which no mask hides."""
        names = [state.name for state in self._request.query_state()]
        return self if all(".key" in name or ".value" in name for name in names) else None

    def reset(self, batch: int, capacity: int) -> None:
        """Empty the cache, which grows with what it holds; see :meth:`llmc.runtimes.session.engine.Session.reset`."""
        require_room(self.info, batch, capacity)
        self._lengths, self._capacity, self._columns = np.zeros(batch, np.int64), capacity, 0
        self._mask = np.ones((batch, capacity), np.int64)
        self._rows = np.arange(batch, dtype=np.int32)
        self._request.reset_state()

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> HostLogits:
        """Append a right-padded chunk to every row; see :meth:`llmc.runtimes.session.engine.Session.forward`."""
        chunk = input_ids.shape[1]
        valid = valid_tokens(self._lengths, self._capacity, input_ids, lengths)
        if self._columns + chunk > 2 * self._capacity and self.rows is not None:
            self._drop_columns()
        self._give(IDS, input_ids)
        self._give(MASK, self._extend_mask(np.arange(chunk), valid))
        self._give(POSITIONS, chunk_positions(self._lengths, valid, chunk))
        self._give(BEAM, self._rows)
        try:
            # infer() on NumPy's memory took 0.8 ms more of a step of 17.
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {last_line(str(error))}") from error
        self._columns += chunk
        self._rows = np.arange(len(valid), dtype=np.int32)
        self._lengths = self._lengths + valid
        return HostLogits(self._request.get_output_tensor(0).data, valid - 1)

    def _give(self, name: str, values: npt.NDArray[Any]) -> None:
        """Fill an input where the model has it; its memory is the model's own and only ever grows."""
        if name not in self._inputs:
            return
        tensor = self._request.get_tensor(name)
        tensor.shape = values.shape
        tensor.data[...] = values

    def _extend_mask(self, within: Int64Array, valid: Int64Array) -> Int64Array:
        """[batch, columns held and new] int64: ones for the tokens that were and are valid."""
        before, total = self._columns, self._columns + len(within)
        if total > self._mask.shape[1]:
            # Padding between chunks takes columns, too.
            more = np.ones((len(valid), total), np.int64)
            self._mask = np.concatenate([self._mask, more], axis=1)
        np.less(within, valid[:, None], out=self._mask[:, before:total], casting="unsafe")
        return self._mask[:, :total]

    def hold(self, row: int, source: int, length: int) -> None:
        """Hide the tokens behind the prefix, and let the next run pick the source's cache; see :class:`RowEditor`."""
        require_prefix(self._lengths, source, length)
        seen = self._mask[source, : self._columns]
        self._mask[row, : self._columns] = seen * (seen.cumsum() <= length)
        self._rows[row], self._lengths[row] = self._rows[source], length

    def _drop_columns(self) -> None:
        """Keep each row's tokens alone, from column 0 on: others were padding, or those of requests that are over."""
        longest, mask = int(self._lengths.max()), self._mask[:, : self._columns]
        if longest == 0:
            self._request.reset_state()
        order = np.argsort(1 - mask, axis=1, kind="stable")[:, None, :longest, None]
        for state in self._request.query_state() if longest else ():
            tokens = np.take_along_axis(state.state.data[self._rows], order, axis=2)
            state.state = type(state.state)(np.ascontiguousarray(tokens))
        self._mask[:, :longest] = np.arange(longest) < self._lengths[:, None]
        self._columns, self._rows = longest, np.arange(len(mask), dtype=np.int32)

    def close(self) -> None:
        """Free the model and the cache."""
        self._request = self.compiled = None
