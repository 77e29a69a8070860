"""The worker for llmc's own engines: ``python -m llmc.runtimes.bench.workers.worker``.

In: requests on stdin (protocol.py). Out: answers on stdout.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.workers.profiled_run import profiled_case
from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve
from llmc.runtimes.bench.workers.text_loop import answer_texts
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.capabilities import RowState, TokenChooser, TokenSource
from llmc.runtimes.session.engine import Int64Array, Session
from llmc.runtimes.session.sampling_params import SamplingParams

Opener = Callable[[Path, int | None], Session]


def open_engine(directory: Path, threads: int | None) -> Session:
    """Open an engine directory with the runtime its manifest names."""
    from llmc.runtimes.engines import open_session

    return open_session(directory, threads=threads)


class SessionTarget:
    """Measures a :class:`~llmc.runtimes.session.engine.Session`.

    A step is timed from the call of ``forward`` until ``argmax`` has answered, so a runtime that only queues its work
    cannot look fast. The arg-max is the only sampling; the token it finds is not fed back: prompts and steps get
    seeded random tokens (as llama-bench does), the same for every engine.

    A session that decodes on its device runs its own loop instead: greedy, each token fed back there and copied to
    the host. Its steps are timed by the device's events, so they include sampling and the gaps between launches, and
    none of the host's work that the device does not wait for.
    """

    def __init__(self, opener: Opener = open_engine) -> None:
        self._opener = opener
        self._session: Session | None = None
        self._directory = Path()

    def prepare(self, source: str, cache: str) -> Prepared:
        """Engines are made by ``llmc compile``: there is nothing to prepare."""
        return Prepared(source)

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Open the engine directory ``path``; returns its info as plain values."""
        self._directory = Path(path)
        self._session = self._opener(self._directory, threads)
        return asdict(self._session.info)

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case on an empty cache.

        Raises:
            EngineError: nothing is open, or the engine failed.
            UsageError: the case is longer than the engine's context.
        """
        session = self._session
        if session is None:
            raise EngineError("run before open")
        if request.capacity > session.info.max_context:
            raise UsageError(
                f"prompt {request.prompt} + gen {request.gen} needs {request.capacity} slots, the engine has "
                f"{session.info.max_context}: use shorter cases, or compile with a longer context"
            )
        vocab = session.info.vocab_size
        prompt = np.array(request.prompt_tokens(vocab), dtype=np.int64)
        steps = [np.array(tokens, dtype=np.int64)[:, None] for tokens in request.step_tokens(vocab)]
        chunks = _chunks(prompt, session.info.profiles)
        self._warm(session, request, prompt)
        session.reset(request.batch, request.capacity)
        if session.chooser is not None:
            return _timed_loop(session, session.chooser, chunks, request)
        return _timed_run(session, chunks, steps)

    def generate(self, request: RunRequest, requests: int, temperature: float) -> list[list[int]]:
        """Run requests through the loop that users run, ``request.batch`` at a time, the next as soon as one ends.

        Returns:
            ``time.perf_counter_ns`` of each request's arrival and tokens, [requests][1 + gen].

        Errors are those of :meth:`run`.
        """
        if self._session is None:
            raise EngineError("generate before open")
        prompts = replace(request, batch=requests).prompt_tokens(self._session.info.vocab_size)
        sampling = SamplingParams(temperature, seed=request.seed)
        wanted = [Request(prompt, request.gen, sampling, id=number) for number, prompt in enumerate(prompts)]
        warm = [Request(prompt, min(2 + request.warm_steps, request.gen), sampling) for prompt in prompts]
        Batch.of(self._session, warm[: request.batch]).run()
        batch = Batch(self._session, min(request.batch, requests), wanted[0].room)
        waiting, free = iter(wanted), request.batch
        while batch.busy or free:
            for each in itertools.islice(waiting, free):
                batch.add(each)
            free = sum(each.finished is not None for each in batch.step())
        return [each.timings.ticks for each in wanted]

    def text(self, prompts: list[Any], gen: int, seed: int, temperature: float) -> list[dict[str, Any]]:
        """Answer texts and chats one after the other; see :func:`~.text_loop.answer_texts`.

        Raises:
            EngineError: nothing is open, or the engine failed.
            UsageError: a prompt that the engine does not take.
        """
        if self._session is None:
            raise EngineError("text before open")
        return answer_texts(self._session, self._directory, prompts, gen, SamplingParams(temperature, seed=seed))

    def operators(self, path: str, threads: int | None, request: RunRequest) -> dict[str, Any]:
        """Times of operators in a session of its own; see :func:`profiled_case`."""
        return profiled_case(Path(path), threads, request)

    def device_bytes(self) -> int | None:
        """Most bytes of the device's memory in use while the session was open; None on the host."""
        return self._session.device_bytes() if self._session is not None else None

    @staticmethod
    def _warm(session: Session, request: RunRequest, prompt: Int64Array) -> None:
        count = min(request.warm_steps, request.capacity)
        session.reset(request.batch, request.capacity)
        if session.chooser is not None:
            # The prompt's kernels are chosen, and the decode step recorded, before anything is timed.
            first = session.forward(prompt).argmax()
            loop = _loop(session.chooser, first, request)
            loop.tokens(min(max(count, 1), request.gen - 1))
            loop.close()
            return
        if session.device_bytes() is not None:
            session.forward(prompt).argmax()
            count = min(count, request.gen - 1)
        for step in range(count):
            session.forward(prompt[:, step % request.prompt, None]).argmax()

    def close(self) -> None:
        """Close the session, if one is open."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _chunks(prompt: Int64Array, profiles: tuple[tuple[int, int], ...]) -> list[Int64Array]:
    """The prompt in one piece, or in the longest pieces that the engine was built for."""
    longest = max((most for _, most in profiles), default=prompt.shape[1])
    return [np.ascontiguousarray(prompt[:, at : at + longest]) for at in range(0, prompt.shape[1], longest)]


def _timed_run(session: Session, chunks: list[Int64Array], steps: list[Int64Array]) -> RunTimes:
    """One prefill and all decode steps, the clock read once a step."""
    clock = time.perf_counter
    ticks = [clock()]
    for chunk in chunks:
        logits = session.forward(chunk)
    logits.argmax()
    ticks.append(clock())
    for tokens in steps:
        session.forward(tokens).argmax()
        ticks.append(clock())
    ended = time.time()
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    return RunTimes(gaps[0], tuple(gaps[1:]), decode_window=(ended - sum(gaps[1:]), ended))


def _timed_loop(session: Session, chooser: TokenChooser, chunks: list[Int64Array], request: RunRequest) -> RunTimes:
    """One prefill by the host's clock, until its token is there, and the decode loop by the device's."""
    begin = time.perf_counter()
    for chunk in chunks:
        logits = session.forward(chunk)
    first = logits.argmax()
    first_token_s = time.perf_counter() - begin
    loop = _loop(chooser, first, request)
    window = time.time()
    for step in range(1, request.gen):
        loop.tokens(step)
    seconds = tuple(loop.step_seconds(step) for step in range(1, request.gen))
    ended = time.time()
    loop.close()
    return RunTimes(first_token_s, seconds, decode_window=(window, ended))


def _loop(chooser: TokenChooser, first: Int64Array, request: RunRequest) -> TokenSource:
    greedy, left = SamplingParams(), request.gen - 1
    return chooser.begin([RowState(token, greedy, row, 1, left) for row, token in enumerate(first.tolist())])


if __name__ == "__main__":
    serve(SessionTarget())
