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
from llmc.runtimes.session.engine import FloatArray, Int64Array, Logits, Session
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
        self._active: list[int] = []  # rows whose request goes on
        self._joining: list[int] = []  # those of them whose prompt is not in the cache yet
        self._on_host: list[int] = []  # those of them whose logits the host needs
        self._prompts_wait = False
        self._source: TokenSource | None = None
        self._source_step = 0
        self._closed = False

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
            if self._held(row).request is request:
                self._finish(row)
                break
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
        if self._source is not None or (self._chooser is not None and self._can_choose(self._chooser)):
            return self._read()
        return self._compute()

    def close(self) -> None:
        """Compute nothing more: the session is another batch's."""
        self._leave_device()
        self._closed = True

    def _held(self, row: int) -> Row:
        held = self._rows[row]
        assert held is not None
        return held

    # --- schedule ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Empty the free rows, and give them to requests that wait; without an editor all together, at the end."""
        if not self._rows or (self._editor is None and not self._active):
            rows = self._size if self._editor is not None else min(self._size, len(self._waiting))
            self._session.reset(rows, self._capacity)
            self._rows = [None] * rows
            self._next_ids, self._goes_on = np.zeros((rows, 1), np.int64), np.zeros(rows, np.int64)
        elif self._editor is None or len(self._active) == len(self._rows):
            return
        self._leave_device()
        for row in range(len(self._rows)):
            if not self._goes_on[row]:
                self._fill(row)
        self._active = np.flatnonzero(self._goes_on).tolist()
        self._on_host = [row for row in self._active if self._held(row).request.needs_logits]

    def _fill(self, row: int) -> None:
        """Empty a row that is free, and let the next request have it, if one waits."""
        if self._rows[row] is not None and self._editor is not None:
            self._editor.release(row)
        self._rows[row] = None
        if self._waiting:
            self._rows[row] = Row(self._waiting.popleft(), self._info.vocab_size)
            self._joining.append(row)
            self._goes_on[row] = 1

    def _columns(self) -> Int64Array:
        """How many tokens each row gets in a call while prompts are computed, [rows]."""
        decoding = [row for row in self._active if row not in self._joining]
        lengths = np.zeros_like(self._goes_on)
        if self._prompts_wait and decoding:
            lengths[decoding] = 1
            self._prompts_wait = False
            return lengths
        # Some runtimes want room for all of a chunk's columns behind the longest row.
        width = min(self._chunk, self._capacity - int(self._session.lengths.max()))
        for row in self._joining:
            lengths[row] = min(width, self._held(row).rest)
        if self._editor is not None and self._editor.mixes_lengths:
            lengths[decoding] = 1
        else:
            self._prompts_wait = self._editor is not None and bool(decoding)
        return lengths

    # --- forward, choose --------------------------------------------------------------------------------------------

    def _compute(self) -> list[Request]:
        """One forward call, and a token in each row whose text is in the cache."""
        ids, lengths, rows = self._next_ids, self._goes_on, list(self._active)
        if self._joining:
            lengths = self._columns()
            ids = self._chunk_ids(lengths)
            rows = [row for row in self._active if lengths[row]]
        everywhere = not self._joining and len(rows) == len(self._rows)
        logits = self._session.forward(ids, None if everywhere else lengths)
        seen = any(row in rows and self._asks_for_logits(row, int(lengths[row])) for row in self._on_host)
        host = logits.host() if seen else None
        if host is not None:
            self._show(host, rows, lengths)
        if self._joining:
            rows = self._advance(rows, lengths)
        return self._take(rows, self._choose(logits, host, rows, lengths))

    def _advance(self, rows: Sequence[int], lengths: Int64Array) -> list[int]:
        """Count what of the prompts is in the cache now; returns the rows of ``rows`` that are to get a token."""
        for row in self._joining:
            self._held(row).fed += int(lengths[row])
        for row in [row for row in self._joining if not self._held(row).rest]:
            self._joining.remove(row)
            if not self._held(row).request.max_tokens:
                self._held(row).request.finished = "length"
                self._finish(row)
        return [row for row in rows if row in self._active and row not in self._joining]

    def _chunk_ids(self, lengths: Int64Array) -> Int64Array:
        """The next tokens of every row, [rows, widest], as many as ``lengths`` says."""
        ids = np.zeros((len(lengths), int(lengths.max())), np.int64)
        ids[:, 0] = self._next_ids[:, 0]
        for row in self._joining:
            held, count = self._held(row), int(lengths[row])
            ids[row, :count] = held.request.ids[held.fed : held.fed + count]
        return ids

    def _asks_for_logits(self, row: int, count: int) -> bool:
        """Whether the host must see a row's logits after ``count`` more tokens of it."""
        return self._held(row).request.watch is not None or self._held(row).rest <= count

    def _show(self, host: FloatArray, rows: Sequence[int], lengths: Int64Array) -> None:
        """Let watchers see their rows' logits."""
        for row in rows:
            held, count = self._held(row), int(lengths[row])
            if held.request.watch is not None:
                last = self._info.logits == "last"
                held.request.watch(held.position + (count - 1 if last else 0), host[row, : 1 if last else count])

    def _choose(self, logits: Logits, host: FloatArray | None, rows: Sequence[int], lengths: Int64Array) -> list[int]:
        """A token for each of ``rows``: where the logits are, or from those on the host."""
        if host is None or not rows:
            tokens: list[int] = logits.argmax()[rows].tolist() if rows else []
            return tokens
        last = self._info.logits == "last"
        return [self._held(row).choose(host[row, 0 if last else int(lengths[row]) - 1]) for row in rows]

    def _can_choose(self, chooser: TokenChooser) -> bool:
        """Whether the device can choose the tokens from here on."""
        requests = [self._held(row).request for row in self._active]
        return (
            not self._joining
            and not any(request.watch or request.forced for request in requests)
            and (chooser.can_choose([request.sampling for request in requests]))
        )

    def _read(self) -> list[Request]:
        """The tokens of a step that the device chooses."""
        if self._source is None:
            assert self._chooser is not None
            states = [self._held(row).state() if self._goes_on[row] else None for row in range(len(self._rows))]
            self._source, self._source_step = self._chooser.begin(states), 0
        self._source_step += 1
        return self._take(tuple(self._active), self._source.tokens(self._source_step)[self._active].tolist())

    def _leave_device(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    # --- tokens into their requests ---------------------------------------------------------------------------------

    def _take(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Request]:
        """Append each row's token to its request; end those that are at their end."""
        requests = [self._held(row).request for row in rows]
        for request, token in zip(requests, tokens, strict=True):
            if token < 0:  # what a device says of logits that are not finite
                raise not_finite(request.id, len(request.tokens))
        moment = time.perf_counter_ns()
        self._next_ids[rows, 0] = tokens
        for row, request, token in zip(rows, requests, tokens, strict=True):
            request.finished = request.take(token, moment)
            if request.finished is not None:
                self._finish(row)
        return requests

    def _finish(self, row: int) -> None:
        """Let a row stand still: what it holds stays until another request takes it."""
        for rows in (self._active, self._joining, self._on_host):
            if row in rows:
                rows.remove(row)
        self._goes_on[row] = 0
        if self._source is not None:
            self._source.finish(row)
            if not self._active:
                self._leave_device()
