"""Drives sessions over windows of text and compares what they say.

In: a reference and a candidate :class:`~llmc.runtimes.session.engine.Session`, windows of token ids.
Out: :class:`~.perplexity.Quality`, or one session's perplexity.

A window is run on an empty cache. Only positions from ``first`` on are scored, so that each has some context; the
default is half a window, as llama-perplexity does. Both sessions see the same chunks, and the logits of no more than
one chunk exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.perplexity import Estimate, LogitsComparison, PerplexityMeter, Quality, Tokens
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import FloatArray, Session

DEFAULT_CHUNK = 128


def make_windows(tokens: Sequence[int] | Tokens, length: int, *, limit: int | None = None) -> list[Tokens]:
    """Cut a text into windows of ``length`` tokens, one after the other; what is left over is dropped.

    Args:
        tokens: Token ids of the whole text, a beginning-of-text token included where the model wants one.
        length: Tokens of a window, at least 2.
        limit: Most windows.

    Raises:
        UsageError: the text is shorter than one window.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    count = len(ids) // length if length >= 2 else 0
    if not count:
        raise UsageError(f"{len(ids)} tokens make no window of {length}: give more text or a shorter window")
    count = count if limit is None else min(count, limit)
    return [ids[index * length : (index + 1) * length] for index in range(count)]


def evaluate(
    reference: Session,
    candidate: Session,
    windows: Iterable[Tokens],
    *,
    first: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    stepping: bool = False,
) -> Quality:
    """Compare two sessions on the same windows.

    Args:
        reference: Whose distribution counts as right.
        candidate: Whose quality is asked for.
        windows: Token ids, [length] integers each; position ``i`` is scored on token ``i + 1``.
        first: First scored position of a window; None: half its length.
        chunk: Tokens per ``forward``; bounds the memory: chunk * vocab * 4 bytes for each session.
        stepping: Whether a session with last-position logits may be run token by token, which is slow.

    Raises:
        UsageError: different vocabularies, windows too short, or a session with last-position logits and no
            ``stepping``.
        EngineError: a session failed.
    """
    if reference.info.vocab_size != candidate.info.vocab_size:
        raise UsageError(
            f"the reference has {reference.info.vocab_size} tokens, the candidate {candidate.info.vocab_size}: "
            "they are not the same model"
        )
    comparison = LogitsComparison()
    for window in windows:
        sides = (_scored(session, window, first, chunk, stepping) for session in (reference, candidate))
        for (left, targets), (right, _) in zip(*sides, strict=True):
            comparison.update(left, right, targets)
    return comparison.result()


def perplexity(
    session: Session,
    windows: Iterable[Tokens],
    *,
    first: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    stepping: bool = False,
) -> Estimate:
    """Perplexity of one session, llama-perplexity's definition; arguments and errors as :func:`evaluate`."""
    meter = PerplexityMeter()
    for window in windows:
        for logits, targets in _scored(session, window, first, chunk, stepping):
            meter.update(logits, targets)
    return meter.result()


def window_logits(
    session: Session, window: Tokens, *, chunk: int = DEFAULT_CHUNK, stepping: bool = False
) -> Iterator[tuple[int, FloatArray]]:
    """Logits of a window on an empty cache, as (position of the first row, [rows, vocab] float32).

    The array is the session's: it is overwritten by the next step of the iterator.

    Raises:
        UsageError: the session gives last-position logits only, and ``stepping`` is off.
    """
    step_by_step = session.info.logits != "all"
    if step_by_step and not stepping:
        raise UsageError(
            f"the {session.info.runtime} engine gives logits of the last position only: compile it with "
            "--logits all, or allow stepping token by token, which is slow"
        )
    seen: list[FloatArray] = []
    keep = np.copy if step_by_step else np.asarray
    request = Request(window.tolist(), 0, watch=lambda _, logits: seen.append(keep(logits)))
    batch, position = Batch.of(session, [request], prefill_chunk=1 if step_by_step else chunk), 0
    while batch.busy:
        batch.step()
        if not step_by_step or len(seen) == chunk or not batch.busy:
            logits = np.concatenate(seen) if step_by_step else seen[0]
            seen.clear()
            yield position, logits
            position += len(logits)


def _scored(
    session: Session, window: Tokens, first: int | None, chunk: int, stepping: bool
) -> Iterator[tuple[FloatArray, Tokens]]:
    """Logits of the scored positions of a window, and the token that follows each."""
    start = len(window) // 2 if first is None else first
    if not 0 <= start < len(window) - 1:
        raise UsageError(f"window of {len(window)} tokens: no position from {start} on has a token that follows")
    for position, logits in window_logits(session, window, chunk=chunk, stepping=stepping):
        skip = max(0, start - position)
        count = min(len(logits), len(window) - 1 - position)
        if skip < count:
            yield logits[skip:count], window[position + skip + 1 : position + count + 1]
