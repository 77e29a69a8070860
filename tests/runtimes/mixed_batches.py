"""Requests of different settings that come and go on a real session, each against itself alone on that session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import FloatArray, Session
from llmc.runtimes.session.sampling import Sampler
from llmc.runtimes.session.sampling_params import SamplingParams

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=1.1, top_k=30, seed=3)
NUCLEUS = SamplingParams(temperature=0.8, top_p=0.9, seed=5)
SETTINGS = [GREEDY, SAMPLED, NUCLEUS, SamplingParams(repetition_penalty=1.3)]


def make_requests(prompts: Sequence[Sequence[int]], **fields: Any) -> Callable[[], list[Request]]:
    """Fresh requests of these prompts, with settings and budgets in turn; every call gives the same ones."""
    return lambda: [
        Request(
            **{"max_tokens": 5 + 3 * (number % 3), **fields},
            prompt=prompt,
            sampling=SETTINGS[number % len(SETTINGS)],
            id=number,
        )
        for number, prompt in enumerate(prompts)
    ]


def random_prompts(count: int = 6, vocab_size: int = 160) -> list[list[int]]:
    random = np.random.default_rng(11)
    return [random.integers(3, vocab_size, length).tolist() for length in random.integers(1, 14, count)]


def check_requests_come_and_go(
    session: Session, fresh: Callable[[], list[Request]], rows: int = 3, chunk: int | None = 4
) -> None:
    """The first two begin, one more joins every second step; the third leaves after its second token."""
    alone = fresh()
    for request in alone:
        Batch.of(session, [request]).run()
    ends = frozenset([alone[0].tokens[3]])
    requests = fresh()
    requests[0].eos_ids = ends
    batch = Batch(session, rows, max(request.room for request in requests), prefill_chunk=chunk)
    late, step = iter(requests), 0
    while batch.busy or step <= 2 * len(requests):
        if step % 2 == 0:
            for request in [next(late, None), next(late, None) if step == 0 else None]:
                if request is not None:
                    batch.add(request)
        for request in batch.step():
            if request is requests[2] and len(request.tokens) == 2:
                batch.cancel(request)
        step += 1
    wanted = [request.tokens for request in alone]
    wanted[0] = wanted[0][: wanted[0].index(next(iter(ends))) + 1]
    wanted[2] = wanted[2][:2]
    assert [request.tokens for request in requests] == wanted
    assert [request.finished for request in requests] == ["eos", "length", "stop", *["length"] * (len(requests) - 3)]


def agreement(session: Session, request: Request) -> list[bool]:
    """Of each token, whether it would be chosen after those before it by the request alone."""
    sampler = Sampler(request.sampling, session.info.vocab_size, request.id)
    sampler.observe(request.ids)
    same: list[bool] = []

    def watch(position: int, logits: FloatArray) -> None:
        step = position + len(logits) - len(request.ids)
        token = request.tokens[step]
        same.append(sampler.sample(logits[-1], step) == token)
        sampler.observe((token,))

    led = Request(request.prompt, request.max_tokens, forced=request.tokens, watch=watch)
    Batch.of(session, [led]).run()
    return same
