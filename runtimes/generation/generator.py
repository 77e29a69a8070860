"""Token ids in, token ids out: several prompts continued together on one session, as an iterator of steps.

    prompts ─▶ Generator.stream ─▶ StepTokens ─▶ StepTokens ─▶ … ─▶ Generation (TokenStream.run, .result)

For programs that have token ids and want no text; they import ``llmc.runtimes.generation.Generator``. The loop is
:class:`~llmc.runtimes.generation.batch.Batch`, which also takes requests that differ in more than their prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import FinishReason, Request
from llmc.runtimes.session.engine import Int64Array, Session
from llmc.runtimes.session.sampling_params import SamplingParams

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class StepTokens:
    """What one step gave.

    Attributes:
        step: Index of the step, from 0.
        tokens: [rows] int64, each row's new token; :data:`NO_TOKEN` where the step gave it none.
        finished: Per row, why it is at its end, or None while it goes on (:attr:`Request.finished`).
    """

    step: int
    tokens: Int64Array
    finished: tuple[FinishReason | None, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """Per row its new tokens so far, with the end token or stop sequence, and why it is at its end."""

    tokens: tuple[tuple[int, ...], ...]
    finished: tuple[FinishReason | None, ...]


class Generator:
    """Generates on one session. A session holds one cache, so a new stream ends the one before."""

    def __init__(self, session: Session) -> None:
        """Drive ``session``, which stays the caller's to close."""
        self.session = session
        self._batch: Batch | None = None

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
        """Check the prompts and make their stream; nothing is computed before its first step.

        Args:
            prompts: Token ids, one list per row, none empty; lengths may differ.
            params: How tokens are chosen; None is greedy.
            max_tokens: Most new tokens per row, at least 1.
            eos_ids: Tokens that end a row; the end token is given out as the row's last.
            stop_sequences: Token sequences that end a row when its new tokens end in one.
            prefill_chunk: Most prompt tokens per row and forward call; None: the whole prompt, or what the engine's
                profiles admit.
            row_ids: Per row, the number its random draws depend on; None: its index.

        Raises:
            UsageError: an argument is out of its range, or a prompt does not fit the engine.
        """
        ids = range(len(prompts)) if row_ids is None else row_ids
        if len(ids) != len(prompts):
            raise UsageError(f"{len(ids)} row ids for {len(prompts)} prompts: give one per prompt")
        ends, stops, sampling = frozenset(eos_ids), tuple(map(tuple, stop_sequences)), params or SamplingParams()
        requests = [
            Request(prompt, max_tokens, sampling, ends, stops, number)
            for number, prompt in zip(ids, prompts, strict=True)
        ]
        batch = Batch.of(self.session, requests, prefill_chunk=prefill_chunk)
        if self._batch is not None:
            self._batch.close()
        self._batch = batch
        return TokenStream(batch, requests)


class TokenStream(Iterator[StepTokens]):
    """One running generation: an iterator of :class:`StepTokens`. Made by :meth:`Generator.stream`."""

    def __init__(self, batch: Batch, requests: Sequence[Request]) -> None:
        """Of ``requests`` that wait in ``batch``."""
        self._batch = batch
        self._step = 0
        self.requests = tuple(requests)

    def __next__(self) -> StepTokens:
        """Go on until a row has a new token.

        Raises:
            EngineError: the runtime failed, its logits are not finite, or a newer stream has the session.
        """
        tokens = np.full(len(self.requests), NO_TOKEN, np.int64)
        while self._batch.busy:
            fresh = self._batch.step()
            for row, request in enumerate(self.requests):
                if request in fresh:
                    tokens[row] = request.tokens[-1]
            if fresh:
                self._step += 1
                return StepTokens(self._step - 1, tokens, self.result().finished)
        raise StopIteration

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a row after the token that it has just given, for a reason that the caller found."""
        self._batch.cancel(self.requests[row], reason)

    def run(self) -> Generation:
        """Go on to the end and return :meth:`result`."""
        self._batch.run()
        return self.result()

    def result(self) -> Generation:
        """What was generated so far; the rows' :attr:`requests` have when each token came."""
        tokens = tuple(tuple(request.tokens) for request in self.requests)
        return Generation(tokens, tuple(request.finished for request in self.requests))
