"""Prompts continued together to the end, for tests of what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import FinishReason, Request
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.sampling_params import SamplingParams


@dataclass(frozen=True)
class Generation:
    """A batch and its requests, in the order of their prompts."""

    batch: Batch
    requests: tuple[Request, ...]

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(request.tokens) for request in self.requests)

    @property
    def finished(self) -> tuple[FinishReason | None, ...]:
        return tuple(request.finished for request in self.requests)


def begin(
    session: Session,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | None = None,
    *,
    max_tokens: int,
    eos_ids: Iterable[int] = (),
    stop_sequences: Iterable[Sequence[int]] = (),
    prefill_chunk: int | None = None,
    ids: Sequence[int] | None = None,
) -> Generation:
    """Requests that differ in their prompts alone, in a batch of their own; nothing is computed yet."""
    stops = tuple(map(tuple, stop_sequences))
    requests = tuple(
        Request(prompt, max_tokens, params or SamplingParams(), frozenset(eos_ids), stops, number)
        for number, prompt in zip(range(len(prompts)) if ids is None else ids, prompts, strict=True)
    )
    return Generation(Batch.of(session, requests, prefill_chunk=prefill_chunk), requests)


def generate(
    session: Session, prompts: Sequence[Sequence[int]], params: SamplingParams | None = None, **options: object
) -> Generation:
    """:func:`begin`, to the end."""
    generation = begin(session, prompts, params, **options)  # type: ignore[arg-type]
    generation.batch.run()
    return generation
