"""The one loop: requests in, their new tokens out step by step, on any session.

    add ─▶ waiting ─▶ a free row ─▶ prompt, chunk by chunk ─▶ token ─▶ token ─▶ … ─▶ finished, the row is free
    step = schedule (who takes a row, who gets how many columns) ─▶ forward ─▶ choose ─▶ tokens into their requests

Each request has settings, stop conditions and a budget of its own, and gives the tokens that it gives alone. Where a
session can edit its rows (:attr:`Session.rows`), requests come and go while others go on: a finished one's row is
released for the next that waits, and while its prompt is computed the others take their token in the same call.
Elsewhere requests run in fixed batches: those that wait begin together when all before them are finished.

A session that can choose tokens where its logits are (:attr:`Session.chooser`) does so while nobody joins: steps are
queued ahead, and the host only reads each step's tokens. What a row says after its end is computed and thrown away.

A step allocates nothing that grows with the batch's history, and a greedy one never brings the logits to the host.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.generation.request import FinishReason, Request
from llmc.runtimes.generation.row import Row
from llmc.runtimes.session.capabilities import TokenChooser, TokenSource
from llmc.runtimes.session.engine import Int64Array, Session
from llmc.runtimes.session.sampling import not_finite


class Batch:
    """Requests that run together on one session, which the batch has for itself until it is closed."""

    def __init__(self, session: Session, rows: int, capacity: int, *, prefill_chunk: int | None = None) -> None:
        """Make an empty batch; nothing is computed before the first :meth:`step`.

        Args:
            session: Stays the caller's to close.
            rows: Most requests that run at a time.
            capacity: Most tokens, prompt and new ones, of a request.
            prefill_chunk: Most prompt tokens per row and forward call; None: the whole prompt, or what the engine's
                profiles admit.

        Raises:
            UsageError: the chunk is out of its range.
        """
        if prefill_chunk is not None and prefill_chunk < 1:
            raise UsageError(f"the prefill chunk is {prefill_chunk}: it must be at least 1 token")
        self._session, self._editor, self._chooser = session, session.rows, session.chooser
        self._info, self._size, self._capacity = session.info, rows, capacity
        longest = max((high for _, high in session.info.profiles), default=capacity)
        self._chunk = min(longest, prefill_chunk or capacity)
        self._waiting: deque[Request] = deque()
        self._rows: list[Row | None] = []
        self._active: list[Row] = []  # those whose request goes on
        self._joining: list[Row] = []  # those of them whose prompt is not in the cache yet
        self._prompts_wait = self._closed = False
        self._source: TokenSource | None = None
        self._source_step = 0

    @classmethod
    def of(cls, session: Session, requests: Sequence[Request], *, prefill_chunk: int | None = None) -> Batch:
        """A batch with room for these requests and with them in it; as many at a time as the engine admits.

        Raises:
            UsageError: there is no request, or one does not fit the engine.
        """
        if not requests:
            raise UsageError("there is no prompt: give at least one")
        rows = min(len(requests), session.info.max_batch or len(requests))
        batch = cls(session, rows, max(request.room for request in requests), prefill_chunk=prefill_chunk)
        for request in requests:
            batch.add(request)
        return batch

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._active or self._waiting)

    def add(self, request: Request) -> None:
        """Let a request wait for a row; its clock starts.

        Raises:
            UsageError: the prompt is not of the engine's vocabulary, or prompt and new tokens exceed its context or
                the batch's capacity.
        """
        request.check_vocabulary(self._info.vocab_size)
        request.check_room(self._info.max_context, "engine's context")
        request.check_room(self._capacity, "batch's capacity")
        request.timings.tick(time.perf_counter_ns())
        self._waiting.append(request)

    def cancel(self, request: Request, reason: FinishReason = "stop") -> None:
        """End a request after the tokens that it has, for a reason that the caller found (a stop string)."""
        if request in self._waiting:
            self._waiting.remove(request)
        for row in self._active:
            if row.request is request:
                self._finish(row, reason)
        request.finished = reason

    def run(self) -> None:
        """Step until every request is finished."""
        while self.busy:
            self.step()

    def step(self) -> list[Request]:
        """Compute a chunk of prompts, or a token of every row, or both.

        Returns:
            Requests that have a new token, ``tokens[-1]``; none where only parts of prompts were computed.

        Raises:
            EngineError: the runtime failed, its logits are not finite, or the batch is closed.
        """
        if self._closed:
            raise EngineError("this generation was ended by a newer one on the same session; open a second session")
        if self._waiting or self._joining:
            self._admit()
        if not self._active:
            return []
        if self._source is None and self._chooser is not None and self._can_choose(self._chooser):
            states = [None if row is None or row.request.finished else row.state() for row in self._rows]
            self._source, self._source_step = self._chooser.begin(states), 0
        return self._compute() if self._source is None else self._read(self._source)

    def close(self) -> None:
        """Compute nothing more: the session is another batch's."""
        self._leave_device()
        self._closed = True

    # --- schedule ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Empty the free rows, and give them to requests that wait; without an editor all together, at the end."""
        if not self._rows or (self._editor is None and not self._active):
            count = self._size if self._editor is not None else min(self._size, len(self._waiting))
            self._session.reset(count, self._capacity)
            self._rows = [None] * count
            self._next_ids, self._goes_on = np.zeros((count, 1), np.int64), np.zeros(count, np.int64)
        elif self._editor is None or len(self._active) == len(self._rows):
            return
        self._leave_device()
        for index, row in enumerate(self._rows):
            if self._goes_on[index]:
                continue
            if row is not None and self._editor is not None:
                self._editor.release(index)
            self._rows[index] = None
            if self._waiting:
                self._rows[index] = joined = Row(index, self._waiting.popleft(), self._info.vocab_size)
                self._joining.append(joined)
                self._goes_on[index] = 1
        self._active = [row for row in self._rows if row is not None]

    def _columns(self) -> Int64Array:
        """How many tokens each row gets in a call while prompts are computed, [rows]."""
        decoding = [row.index for row in self._active if row not in self._joining]
        lengths = np.zeros_like(self._goes_on)
        if self._prompts_wait and decoding:
            lengths[decoding] = 1
            self._prompts_wait = False
            return lengths
        # Some runtimes want room for all of a chunk's columns behind the longest row.
        width = max(1, min(self._chunk, self._capacity - int(self._session.lengths.max())))
        for row in self._joining:
            lengths[row.index] = min(width, row.rest)
        if self._editor is not None and self._editor.mixes_lengths:
            lengths[decoding] = 1
        else:
            self._prompts_wait = self._editor is not None and bool(decoding)
        return lengths

    def _can_choose(self, chooser: TokenChooser) -> bool:
        """Whether the device can choose the tokens from here on."""
        requests = [row.request for row in self._active]
        if self._joining or any(request.watch or request.forced for request in requests):
            return False
        return chooser.can_choose([request.sampling for request in requests])

    # --- forward, choose --------------------------------------------------------------------------------------------

    def _compute(self) -> list[Request]:
        """One forward call, and a token in each row whose text is in the cache."""
        ids, lengths, rows = self._next_ids, self._goes_on, self._active
        if self._joining:
            lengths = self._columns()
            ids = self._chunk_ids(lengths)
            rows = [row for row in rows if lengths[row.index]]
        everywhere = not self._joining and len(rows) == len(self._rows)
        logits = self._session.forward(ids, None if everywhere else lengths)
        seen = any(row.needs_logits and row.looks(int(lengths[row.index])) for row in rows)
        host = logits.host() if seen else None
        if host is not None:
            for row in rows:
                row.show(host[row.index], int(lengths[row.index]))
        if self._joining:
            rows = self._advance(rows, lengths)
        if host is not None:
            return self._take(rows, [row.choose(host[row.index], int(lengths[row.index])) for row in rows])
        tokens = logits.argmax().tolist() if rows else []
        return self._take(rows, [tokens[row.index] for row in rows])

    def _chunk_ids(self, lengths: Int64Array) -> Int64Array:
        """The next tokens of every row, [rows, widest], as many as ``lengths`` says."""
        ids = np.zeros((len(lengths), int(lengths.max())), np.int64)
        ids[:, :1] = self._next_ids
        for row in self._joining:
            count = int(lengths[row.index])
            ids[row.index, :count] = row.request.ids[row.fed : row.fed + count]
        return ids

    def _advance(self, rows: Sequence[Row], lengths: Int64Array) -> list[Row]:
        """Count what of the prompts is in the cache now; returns those of ``rows`` that are to get a token."""
        for row in self._joining:
            row.fed += int(lengths[row.index])
        self._joining = [row for row in self._joining if row.rest]
        for row in rows:
            if not row.rest and not row.request.max_tokens:
                self._finish(row, "length")
        return [row for row in rows if not row.rest and row.request.finished is None]

    def _read(self, source: TokenSource) -> list[Request]:
        """The tokens of a step that the device chooses."""
        self._source_step += 1
        tokens = source.tokens(self._source_step).tolist()
        return self._take(self._active, [tokens[row.index] for row in self._active])

    def _leave_device(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    # --- tokens into their requests ---------------------------------------------------------------------------------

    def _take(self, rows: Sequence[Row], tokens: Sequence[int]) -> list[Request]:
        """Append each row's token to its request; end those that are at their end."""
        for row, token in zip(rows, tokens, strict=True):
            if token < 0:  # what a device says of logits that are not finite
                raise not_finite(row.request.id, len(row.request.tokens))
        moment = time.perf_counter_ns()
        for row, token in zip(rows, tokens, strict=True):
            self._next_ids[row.index, 0] = token
            reason = row.request.take(token, moment)
            if reason is not None:
                self._finish(row, reason)
        return [row.request for row in rows]

    def _finish(self, row: Row, reason: FinishReason) -> None:
        """Let a row stand still: what it holds stays until another request takes it."""
        row.request.finished = reason
        self._active = [other for other in self._active if other is not row]
        self._joining = [other for other in self._joining if other is not row]
        self._goes_on[row.index] = 0
        if self._source is not None:
            self._source.finish(row.index)
            if not self._active:
                self._leave_device()
