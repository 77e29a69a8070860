"""The logits of the positions that are scored, from a session, block by block.

In: a session and windows of token ids. Out: :class:`ScoredRows`. A :data:`LogitsSource` is anything that gives them:
a session of ours, or another program.

    window    0 … first … length - 2, length - 1
                  └─ scored, each on the token that follows it ─┘

A session that gives every position's logits runs one window after the other, chunk by chunk. One that gives the last
position's alone is fed up to ``first`` in chunks and then token by token, many windows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.evaluation.perplexity import Tokens
from llmc.runtimes.evaluation.quality import DEFAULT_CHUNK, window_logits
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import FloatArray, Session

ROWS_AT_A_TIME = 8
"""Windows that are stepped through together."""


@dataclass(frozen=True)
class ScoredRows:
    """Some scored positions of one window.

    Attributes:
        window: Its number.
        start: The first of them, counted from the window's first scored position.
        logits: [positions, vocab] float32; the source's, overwritten when the next are asked for.
    """

    window: int
    start: int
    logits: FloatArray


LogitsSource = Callable[[Tokens, int], Iterator[ScoredRows]]
"""Windows [windows, length] int64 and the first scored position in; the logits of positions up to length - 2 out."""


def session_source(session: Session, *, chunk: int = DEFAULT_CHUNK) -> LogitsSource:
    """The scored positions as a session says them, ``chunk`` tokens a call.

    The source raises:
        UsageError: a window is longer than the session's context, or holds what is no token.
        EngineError: the session failed.
    """

    def rows(windows: Tokens, first: int) -> Iterator[ScoredRows]:
        require_scored(windows, first)
        if windows.shape[1] > session.info.max_context:
            raise UsageError(
                f"the engine's context of {session.info.max_context} is shorter than a window of {windows.shape[1]} "
                "tokens; give a shorter --window, or compile with a larger --context"
            )
        every = session.info.logits == "all"
        return _whole_rows(session, windows, first, chunk) if every else _stepped_rows(session, windows, first, chunk)

    return rows


def require_finite(rows: ScoredRows, first: int, whose: str, place: str) -> None:
    """Refuse logits that are not finite.

    Args:
        rows: The logits.
        first: The first scored position of the window.
        whose: Whose they are, as "int4's".
        place: Their window in words, as "window 3".

    Raises:
        EngineError: it names the first of them.
    """
    finite = np.isfinite(rows.logits)
    if finite.all():
        return
    row, token = (int(index) for index in np.argwhere(~finite)[0])
    value, length = rows.logits[row, token], first + rows.start + row + 1
    raise EngineError(
        f"{whose} logits are not finite: {value} for token {token} after {length} tokens of {place}; a weight is "
        "not finite, or a value is beyond what its type holds"
    )


def require_scored(windows: Tokens, first: int) -> None:
    """Refuse windows without a scored position.

    Raises:
        UsageError: no position from ``first`` on has a token that follows.
    """
    if windows.ndim != 2 or not 0 <= first < windows.shape[1] - 1:
        raise UsageError(f"windows {list(windows.shape)}: no position from {first} on has a token that follows")


def _whole_rows(session: Session, windows: Tokens, first: int, chunk: int) -> Iterator[ScoredRows]:
    for index, window in enumerate(windows):
        for position, logits in window_logits(session, window, chunk=chunk):
            begin, end = max(0, first - position), min(len(logits), len(window) - 1 - position)
            if begin < end:
                yield ScoredRows(index, position + begin - first, logits[begin:end])


def _stepped_rows(session: Session, windows: Tokens, first: int, chunk: int) -> Iterator[ScoredRows]:
    seen: list[ScoredRows] = []

    def watcher(index: int) -> Callable[[int, FloatArray], None]:
        def watch(position: int, logits: FloatArray) -> None:
            if position >= first:
                seen.append(ScoredRows(index, position - first, logits))

        return watch

    for begin in range(0, len(windows), ROWS_AT_A_TIME):
        requests = [
            Request(
                window[: first + 1],
                len(window) - 1 - first,
                forced=window[first + 1 :].tolist(),
                watch=watcher(index),
            )
            for index, window in enumerate(windows[begin : begin + ROWS_AT_A_TIME], begin)
        ]
        batch = Batch.of(session, requests, prefill_chunk=chunk)
        while batch.busy:
            batch.step()
            yield from seen
            seen.clear()


def greedy_continuations(session: Session, prompts: Tokens, count: int) -> Tokens:
    """The ``count`` tokens that a session finds likeliest after each of ``prompts`` [prompts, length] int64."""
    # A small chunk: a batch of whole prompts would have the logits of all their positions at once.
    requests = [Request(prompt, count, id=index) for index, prompt in enumerate(prompts)]
    Batch.of(session, requests, prefill_chunk=DEFAULT_CHUNK // ROWS_AT_A_TIME).run()
    return np.asarray([request.tokens for request in requests], np.int64)


def equal_greedy_tokens(source: LogitsSource, prompts: Tokens, continuations: Tokens, whose: str) -> list[int]:
    """How many tokens of each of ``continuations`` [prompts, count] a source would write before its first other one.

    It is led along them: up to the first difference that is its own text.

    Raises:
        EngineError: logits that are not finite, ``whose`` they are.
    """
    windows = np.concatenate([prompts, continuations], axis=1)
    # The last token is the last that is compared: the position before it is the last that is scored.
    found = np.zeros_like(continuations)
    for rows in source(windows, prompts.shape[1] - 1):
        require_finite(rows, prompts.shape[1] - 1, whose, f"the continuation of prompt {rows.window + 1}")
        found[rows.window, rows.start : rows.start + len(rows.logits)] = rows.logits.argmax(axis=1)
    same = np.concatenate([found == continuations, np.zeros((len(prompts), 1), bool)], axis=1)
    return [int(count) for count in same.argmin(axis=1)]
