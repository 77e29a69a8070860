"""One text that is to be continued: what is asked, how far it has come, and when each token came.

In: a prompt's token ids, how to choose tokens, when to end. Out: :class:`Request`, whose state a
:class:`~llmc.runtimes.generation.batch.Batch` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.timings import Timings
from llmc.runtimes.session.engine import FloatArray, Int64Array
from llmc.runtimes.session.sampling_params import SamplingParams

FinishReason = Literal["eos", "stop", "length"]
Watcher = Callable[[int, FloatArray], None]
"""Told the position of a text's token and the logits after it and the tokens behind it, [positions, vocab_size]."""


@dataclass(eq=False)
class Request:
    """A prompt and its continuation.

    Attributes:
        prompt: Token ids, at least one.
        max_tokens: Most new tokens, at least 1; or 0 where ``watch`` is told of the prompt's logits alone.
        sampling: How tokens are chosen.
        eos_ids: Tokens that end the text; the end token is given out as its last.
        stop_sequences: Token sequences that end the text when its new tokens end in one. For stop *strings*, which
            may be cut into tokens in many ways, see :class:`llmc.runtimes.generation.stream_decoder.StreamDecoder`.
        id: The request's number: its random draws depend on it, beside the seed, and errors name it.
        forced: A continuation that is known, ``max_tokens`` at least: its tokens are taken, and none is chosen.
        watch: Told of the logits of every position that an engine gives: of the prompt's, chunk by chunk (the last of
            each chunk where the engine's logits are ``last``), and of each new token but the last. The array is the
            session's, and overwritten by the next step.
        ids: The prompt, [length] int64.
        tokens: New tokens so far, with the end token or stop sequence.
        finished: Why the text is at its end, or None while it goes on. ``eos``: its last token is an end token;
            ``stop``: its last tokens are a stop sequence, or the caller ended it; ``length``: it has ``max_tokens``.
        timings: When the request came and each of its tokens.

    Raises:
        UsageError: a value is out of its range.
    """

    prompt: Sequence[int] | Int64Array
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos_ids: frozenset[int] = frozenset()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    id: int = 0
    forced: Sequence[int] = ()
    watch: Watcher | None = None
    ids: Int64Array = field(init=False)
    tokens: list[int] = field(default_factory=list, init=False)
    finished: FinishReason | None = field(default=None, init=False)
    timings: Timings = field(default_factory=Timings, init=False)

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.prompt, np.int64)
        if not len(self.ids):
            raise UsageError(
                f"prompt {self.id} is empty: give it at least one token, for example the tokenizer's bos token"
            )
        if self.max_tokens < (self.watch is None):
            raise UsageError(f"max-tokens is {self.max_tokens}: it must be at least 1")
        if self.forced and len(self.forced) < self.max_tokens:
            raise UsageError(f"{len(self.forced)} tokens are known of {self.max_tokens}; give them all, or none")
        if not all(self.stop_sequences):
            raise UsageError("a stop sequence is empty: it must hold at least one token")

    @property
    def room(self) -> int:
        """Tokens that a row must hold for it."""
        return len(self.ids) + self.max_tokens

    def check_vocabulary(self, size: int) -> None:
        """Raise UsageError where a token of the prompt is none of ``size``."""
        outside = np.flatnonzero((self.ids < 0) | (self.ids >= size))
        if outside.size:
            position = int(outside[0])
            raise UsageError(
                f"prompt {self.id} holds token {self.ids[position]} at position {position}, outside the engine's "
                f"vocabulary of {size}; encode it with the tokenizer in the engine's directory"
            )

    def check_room(self, room: int, where: str) -> None:
        """Raise UsageError where the text may grow longer than the ``room`` of ``where``."""
        if self.room > room:
            rest = room - len(self.ids)
            advice = f"ask for at most {rest} new tokens" if rest > 0 else f"shorten the prompt below {room} tokens"
            raise UsageError(
                f"the prompt's {len(self.ids)} tokens and {self.max_tokens} new ones exceed the {where} of {room}; "
                f"{advice}"
            )

    def take(self, token: int, moment: int) -> FinishReason | None:
        """Append a token that came at ``moment`` (nanoseconds); returns why it is the last one, or None."""
        self.tokens.append(token)
        self.timings.tick(moment)
        if token in self.eos_ids:
            return "eos"
        if self.stop_sequences and any(self._ends_in(sequence) for sequence in self.stop_sequences):
            return "stop"
        return "length" if len(self.tokens) == self.max_tokens else None

    def _ends_in(self, sequence: tuple[int, ...]) -> bool:
        return self.tokens[-len(sequence) :] == list(sequence)
