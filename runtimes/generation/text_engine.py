"""Text from an engine: prompts in, text out as it comes, and how fast it came.

In: an engine's directory, prompts, how to choose tokens. Out: :class:`Reply`, which is iterated while it is made;
:class:`Conversation` keeps what was said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.base.errors import LlmcError, UsageError
from llmc.runtimes.engines import open_session
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.chat import Message
from llmc.runtimes.generation.request import FinishReason, Request
from llmc.runtimes.generation.stream_decoder import StreamDecoder
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.session.engine import FloatArray, Session
from llmc.runtimes.session.sampling_params import SamplingParams

DEFAULT_MAX_TOKENS = 256
"""New tokens unless the user asks for another number; fewer where the context leaves fewer."""


@dataclass(frozen=True)
class Speed:
    """How fast a reply came.

    Attributes:
        tokens: New tokens, all rows.
        ttft_s: Seconds to the first token; None without one.
        tokens_per_s: Tokens after each row's first, per second; None with one token or none.
    """

    tokens: int
    ttft_s: float | None
    tokens_per_s: float | None

    def __str__(self) -> str:
        """As ``TTFT 31 ms, 96 tokens, 85.2 tok/s``."""
        parts = [] if self.ttft_s is None else [f"TTFT {self.ttft_s * 1e3:.0f} ms"]
        parts.append(f"{self.tokens} tokens")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tok/s")
        return ", ".join(parts)


class Reply:
    """One generation: iterate it for the pieces of text, of every row at each step."""

    def __init__(
        self, batch: Batch, requests: Sequence[Request], tokenizer: TextTokenizer, stop: Sequence[str]
    ) -> None:
        """Of fresh ``requests``, whose ids count from 0, in ``batch``; texts end before a ``stop`` string.

        Raises:
            UsageError: a stop string is empty.
        """
        self._batch, self._requests = batch, tuple(requests)
        self._decoders = [StreamDecoder(tokenizer, stop) for _ in requests]
        self.texts = [""] * len(requests)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Text that has become certain, row by row; :attr:`texts` has all of it so far."""
        while self._batch.busy:
            pieces = [""] * len(self.texts)
            for request in self._batch.step():
                decoder = self._decoders[request.id]
                pieces[request.id] = decoder.take(request)
                if decoder.stopped:
                    self._batch.cancel(request)
            self.texts = [text + piece for text, piece in zip(self.texts, pieces, strict=True)]
            yield tuple(pieces)

    @property
    def speed(self) -> Speed:
        """How fast it came so far."""
        timings = [request.timings for request in self._requests if request.tokens]
        firsts = [ttft for each in timings if (ttft := each.ttft_s) is not None]
        count = sum(len(request.tokens) for request in self._requests)
        if not timings:
            return Speed(count, None, None)
        decode_s = (max(each.ticks[-1] for each in timings) - min(each.ticks[1] for each in timings)) / 1e9
        later = count - len(timings)
        return Speed(count, max(firsts), later / decode_s if later and decode_s > 0 else None)

    @property
    def finished(self) -> tuple[FinishReason | None, ...]:
        """Per row, why it ended: ``eos``, ``stop``, ``length``; None where it was interrupted."""
        return tuple(request.finished for request in self._requests)

    def to_json(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        rows = zip(prompts, self.texts, self._requests, strict=True)
        return {
            "results": [
                {"prompt": prompt, "text": text, "tokens": request.tokens, "finished": request.finished}
                for prompt, text, request in rows
            ],
            **asdict(self.speed),
        }


@dataclass
class TextEngine:
    """An open engine with its tokenizer. It has one cache, so what is begun ends the reply before.

    Attributes:
        session: The engine.
        tokenizer: Of the same directory.
    """

    session: Session
    tokenizer: TextTokenizer
    _batch: Batch | None = field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, directory: Path, threads: int | None) -> TextEngine:
        """Open an artifact's engine and tokenizer; errors are theirs."""
        session = open_session(directory, threads=threads)
        try:
            return cls(session, TextTokenizer.from_directory(directory))
        except LlmcError:
            session.close()
            raise

    def close(self) -> None:
        """Free the engine."""
        self.session.close()

    def encode(self, prompt: str, *, parse_special: bool = True) -> list[int]:
        """Tokens of a plain prompt; see :meth:`.TextTokenizer.encode`."""
        return self.tokenizer.encode(prompt, parse_special=parse_special)

    def encode_chat(
        self, messages: Sequence[Message], *, parse_special: bool = False, template: str | None = None
    ) -> list[int]:
        """Tokens of a conversation that the model is to go on with; see :meth:`.TextTokenizer.encode_chat`."""
        return self.tokenizer.encode_chat(messages, parse_special=parse_special, template=template)

    def reply(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams, stop: Sequence[str], max_tokens: int | None
    ) -> Reply:
        """Begin a generation.

        Args:
            prompts: Token ids, one list per row.
            sampling: How tokens are chosen.
            stop: Strings that end a row.
            max_tokens: New tokens at most; None: :data:`DEFAULT_MAX_TOKENS`, or what the context leaves.

        Raises:
            UsageError: a prompt is empty or fills the context.
        """
        longest, context = max(len(prompt) for prompt in prompts), self.session.info.max_context
        if longest >= context:
            raise UsageError(
                f"the prompt has {longest} tokens and the engine's context is {context}; shorten the prompt, or "
                "compile with a larger --context"
            )
        count = min(DEFAULT_MAX_TOKENS, context - longest) if max_tokens is None else max_tokens
        ends = frozenset(self.tokenizer.eos_ids)
        requests = [Request(prompt, count, sampling, ends, id=row) for row, prompt in enumerate(prompts)]
        return Reply(self._begin(requests), requests, self.tokenizer, stop)

    def logits(self, prompt: Sequence[int]) -> FloatArray:
        """What the model says of the token after each of a prompt's, [positions, vocab_size] float32.

        Args:
            prompt: Token ids, at least one.

        Returns:
            A row for every token of the prompt where the engine's logits are ``all``; else one, for its last.

        Raises:
            UsageError: the prompt is empty, exceeds the context, or holds what is no token.
        """
        rows: list[FloatArray] = []
        self._begin([Request(prompt, 0, watch=lambda _, seen: rows.append(seen.copy()))]).run()
        return np.concatenate(rows) if self.session.info.logits == "all" else rows[-1]

    def _begin(self, requests: Sequence[Request]) -> Batch:
        """A batch that has the session from now on."""
        if self._batch is not None:
            self._batch.close()
        self._batch = Batch.of(self.session, requests)
        return self._batch


@dataclass
class Conversation:
    """What was said so far.

    Attributes:
        engine: Encodes what is said.
        begin: Begins a generation from token ids.
        system: System message, or None.
        encode: Makes token ids of messages; None: as the engine does.
        messages: Everything said, the system message first.
    """

    engine: TextEngine
    begin: Callable[[list[list[int]]], Reply]
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    encode: Callable[[list[Message]], list[int]] | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Reply:
        """Begin the answer to a new turn; nothing is remembered before :meth:`remember`.

        Raises:
            UsageError: the model has no chat template, or the conversation fills the context.
        """
        turn: Message = {"role": "user", "content": text}
        return self.begin([(self.encode or self.engine.encode_chat)([*self.messages, turn])])

    def remember(self, text: str, answer: str) -> None:
        """Keep a turn and its answer."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
