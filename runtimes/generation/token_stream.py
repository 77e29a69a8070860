"""The decode loop: prompts in, one token per row and step out, on any :class:`~llmc.runtimes.session.engine.Session`.

    prompts ─▶ prefill (whole, or in chunks) ─▶ choose ─▶ yield ─▶ forward of one token per row ─▶ choose ─▶ …

Rows have their own lengths from the first chunk to the last token. A finished row is fed chunks of length 0, so it
neither grows its cache nor changes the others; the loop ends when every row is finished. All buffers are made before
the first token: a step allocates nothing that grows with the batch's history, and a greedy step never brings the
logits to the host.

A session that has a chooser chooses the tokens on its device, too: steps are queued
ahead, and the host only reads each step's tokens. What a row says after its end is computed and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.session.capabilities import RowState, TokenSource
from llmc.runtimes.session.engine import Int64Array, Logits, Session
from llmc.runtimes.session.padding import pad_prompts
from llmc.runtimes.session.sampling import Sampler
from llmc.runtimes.session.sampling_params import SamplingParams
from llmc.runtimes.session.timings import GenerationTimings

FinishReason = Literal["eos", "stop", "length"]
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What one step gave.

    Attributes:
        step: Index of the step, from 0.
        tokens: [batch] int64, the row's new token; :data:`NO_TOKEN` in rows that finished before. It stays valid.
        finished: Per row, why it is finished, or None while it goes on. ``eos``: its last token is an end token;
            ``stop``: its last tokens are a stop sequence, or the caller ended it; ``length``: it has ``max_tokens``.
    """

    step: int
    tokens: Int64Array
    finished: tuple[FinishReason | None, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole generation: per row its tokens, with the end token or stop sequence, and its reason; and the times."""

    tokens: tuple[tuple[int, ...], ...]
    finished: tuple[FinishReason | None, ...]
    timings: GenerationTimings


@dataclass(frozen=True, slots=True)
class _Request:
    """The checked arguments of one :meth:`Generator.stream`."""

    max_tokens: int
    eos_ids: frozenset[int]
    stop_sequences: tuple[tuple[int, ...], ...]
    prefill_chunk: int | None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max-tokens is {self.max_tokens}: it must be at least 1")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise UsageError(f"the prefill chunk is {self.prefill_chunk}: it must be at least 1 token")
        if not all(self.stop_sequences):
            raise UsageError("a stop sequence is empty: it must hold at least one token")


class Generator:
    """Generates on one session. A session holds one cache, so a new stream ends the one before."""

    def __init__(self, session: Session) -> None:
        """Drive ``session``, which stays the caller's to close."""
        self.session = session
        self._current: TokenStream | None = None

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | None = None,
        *,
        max_tokens: int,
        eos_ids: Iterable[int] = (),
        stop_sequences: Iterable[Sequence[int]] = (),
        prefill_chunk: int | None = None,
        row_ids: Sequence[int] | None = None,
    ) -> TokenStream:
        """Check a request and make its stream; nothing is computed before the stream's first ``next``.

        Args:
            prompts: Token ids, one list per row, none empty; lengths may differ.
            params: How tokens are chosen; None is greedy.
            max_tokens: Most new tokens per row, at least 1.
            eos_ids: Tokens that end a row; the end token is given out as the row's last.
            stop_sequences: Token sequences that end a row when its new tokens end in one. For stop *strings*, which
                may be cut into tokens in many ways, see :func:`llmc.runtimes.generation.stream_decoder.stream_text`.
            prefill_chunk: Most prompt tokens per row and forward call; None: the whole prompt, or what the engine's
                profiles admit.
            row_ids: Per row, the number its random draws depend on; None: its index.

        Raises:
            UsageError: an argument is out of range, or prompt and new tokens exceed the engine's context.
        """
        request = _Request(max_tokens, frozenset(eos_ids), tuple(map(tuple, stop_sequences)), prefill_chunk)
        ids = tuple(range(len(prompts))) if row_ids is None else tuple(row_ids)
        stream = TokenStream(self, pad_prompts(prompts), params or SamplingParams(), request, ids)
        self._current = stream
        return stream

    def is_current(self, stream: TokenStream) -> bool:
        """Whether the session's cache belongs to ``stream``."""
        return self._current is stream


class TokenStream(Iterator[StepTokens]):
    """One running generation: an iterator of :class:`StepTokens`. Made by :meth:`Generator.stream`."""

    def __init__(
        self,
        generator: Generator,
        prompts: tuple[Int64Array, Int64Array],
        params: SamplingParams,
        request: _Request,
        row_ids: tuple[int, ...],
    ) -> None:
        """See :meth:`Generator.stream`; ``prompts`` is [batch, seq] right-padded and its lengths [batch], int64."""
        info = generator.session.info
        self._prompts, self._prompt_lengths = prompts
        batch, longest = self._prompts.shape
        _check_rows(self._prompts, self._prompt_lengths, row_ids, info.vocab_size)
        _check_context(longest, request.max_tokens, info.max_context)
        self.timings = GenerationTimings(request.max_tokens)
        self._generator = generator
        self._session = generator.session
        self._request = request
        self._chunk = _chunk_length(longest, request.prefill_chunk, info.profiles)
        self._needs_logits = params.needs_logits
        self._last_only = info.logits == "last"
        self._samplers = [Sampler(params, info.vocab_size, row_id) for row_id in row_ids]
        self._tokens: Int64Array = np.full((request.max_tokens, batch), NO_TOKEN, dtype=np.int64)
        self._next_ids: Int64Array = np.zeros((batch, 1), dtype=np.int64)
        self._next_lengths: Int64Array = np.ones(batch, dtype=np.int64)
        self._finished: tuple[FinishReason | None, ...] = (None,) * batch
        self._active = list(range(batch))
        self._params, self._row_ids = params, row_ids
        self._loop: TokenSource | None = None

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> StepTokens:
        """Compute one token for every unfinished row.

        Raises:
            EngineError: the runtime failed, or another stream has taken the session since.
        """
        step = self.timings.steps
        if not self._active:
            raise StopIteration
        if not self._generator.is_current(self):
            raise EngineError("this generation was ended by a newer one on the same session; open a second session")
        if step == 0:
            self._prefill()
        else:
            self._decode(step)
        self.timings.tick()
        self._finish_rows(step)
        if self._loop is not None and not self._active:
            self._loop.close()
        return StepTokens(step, self._tokens[step], self._finished)

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a row after the token it has just given, for a reason that the caller found (a stop string)."""
        if row in self._active:
            self._active.remove(row)
            if self._loop is not None:
                self._loop.finish(row)
            self._next_lengths[row] = 0
        self._finished = (*self._finished[:row], reason, *self._finished[row + 1 :])

    @property
    def finished(self) -> tuple[FinishReason | None, ...]:
        """Per row, why it is finished, or None while it goes on; [batch]."""
        return self._finished

    def run(self) -> Generation:
        """Go on to the end and return :meth:`result`."""
        for _ in self:
            pass
        return self.result()

    def result(self) -> Generation:
        """What was generated so far."""
        columns = self._tokens[: self.timings.steps].T.tolist()
        rows = tuple(tuple(token for token in column if token != NO_TOKEN) for column in columns)
        return Generation(rows, self._finished, self.timings)

    def _prefill(self) -> None:
        """Compute the prompts chunk by chunk; a row's first token is chosen in the chunk where its prompt ends."""
        self.timings.start()
        batch, longest = self._prompts.shape
        self._session.reset(batch, longest + self._request.max_tokens)
        for row in self._active:
            self._samplers[row].observe(self._prompts[row, : self._prompt_lengths[row]])
        for start in range(0, longest, self._chunk):
            chunk = np.ascontiguousarray(self._prompts[:, start : start + self._chunk])
            lengths = np.clip(self._prompt_lengths - start, 0, chunk.shape[1])
            logits = self._session.forward(chunk, lengths)
            ends = self._prompt_lengths - start
            ending = [row for row in self._active if 0 < ends[row] <= chunk.shape[1]]
            self._choose(logits, 0, ending, lengths)

    def _decode(self, step: int) -> None:
        """Append each unfinished row's last token and choose the one after it."""
        if self._decodes_on_device():
            self._read_step(step)
            return
        self._next_ids[self._active, 0] = self._tokens[step - 1, self._active]
        all_rows = len(self._active) == len(self._finished)
        logits = self._session.forward(self._next_ids, None if all_rows else self._next_lengths)
        self._choose(logits, step, self._active, self._next_lengths)

    def _decodes_on_device(self) -> bool:
        chooser = self._session.chooser
        return chooser is not None and chooser.can_choose([self._params])

    def _read_step(self, step: int) -> None:
        """Take the step's tokens from the loop on the device, which is started with token 0."""
        if self._loop is None:
            left = self._request.max_tokens - 1
            states = [
                RowState(int(self._tokens[0, row]), self._params, row_id, 1, left) if row in self._active else None
                for row, row_id in enumerate(self._row_ids)
            ]
            assert self._session.chooser is not None
            self._loop = self._session.chooser.begin(states)
        tokens = self._loop.tokens(step)
        _check_tokens(tokens, self._active, step)
        self._tokens[step, self._active] = tokens[self._active]

    def _choose(self, logits: Logits, step: int, rows: Sequence[int], lengths: Int64Array) -> None:
        """Write the chosen token of each of ``rows``; ``lengths`` are the chunk's."""
        tokens = self._tokens[step]
        if not rows:
            return
        if not self._needs_logits:
            found = logits.argmax()
            _check_tokens(found, rows, step)
            tokens[rows] = found[rows]
            return
        host = logits.host()
        for row in rows:
            position = 0 if self._last_only else int(lengths[row]) - 1
            token = self._samplers[row].sample(host[row, position], step)
            self._samplers[row].observe((token,))
            tokens[row] = token

    def _finish_rows(self, step: int) -> None:
        for row in tuple(self._active):
            if int(self._tokens[step, row]) in self._request.eos_ids:
                self.finish(row, "eos")
            elif self._request.stop_sequences and self._ends_in_stop(step, row):
                self.finish(row, "stop")
            elif step + 1 == self._request.max_tokens:
                self.finish(row, "length")

    def _ends_in_stop(self, step: int, row: int) -> bool:
        return any(
            len(sequence) <= step + 1
            and self._tokens[step + 1 - len(sequence) : step + 1, row].tolist() == list(sequence)
            for sequence in self._request.stop_sequences
        )


def _check_tokens(tokens: Int64Array, rows: Sequence[int], step: int) -> None:
    """Refuse the token that a device gives for logits that are not finite.

    Raises:
        EngineError: one of ``rows`` has it.
    """
    if broken := [row for row in rows if tokens[row] < 0]:
        raise EngineError(
            f"the engine's logits for row {broken[0]} are not finite at step {step}; "
            "check the engine with `llmc verify`, or compile at a higher precision"
        )


def _check_rows(prompts: Int64Array, lengths: Int64Array, row_ids: tuple[int, ...], vocab_size: int) -> None:
    if len(row_ids) != len(prompts):
        raise UsageError(f"{len(row_ids)} row ids for {len(prompts)} prompts: give one per prompt")
    valid = np.arange(prompts.shape[1]) < lengths[:, None]
    outside = np.argwhere(valid & ((prompts < 0) | (prompts >= vocab_size)))
    if outside.size:
        row, position = outside[0].tolist()
        raise UsageError(
            f"prompt {row} holds token {int(prompts[row, position])} at position {position}, outside the engine's "
            f"vocabulary of {vocab_size}; encode it with the tokenizer in the engine's directory"
        )


def _check_context(longest: int, max_tokens: int, max_context: int) -> None:
    if longest + max_tokens > max_context:
        room = max_context - longest
        advice = (
            f"ask for at most {room} new tokens" if room > 0 else f"shorten the prompt below {max_context} tokens"
        )
        raise UsageError(
            f"the prompt's {longest} tokens and {max_tokens} new ones exceed the engine's context of {max_context}; "
            f"{advice}"
        )


def _chunk_length(longest: int, prefill_chunk: int | None, profiles: tuple[tuple[int, int], ...]) -> int:
    """Tokens per prefill call: what was asked for, but no more than the engine was built for."""
    chunk = longest if prefill_chunk is None else prefill_chunk
    return min(chunk, max(high for _, high in profiles)) if profiles else chunk
