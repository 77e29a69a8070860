"""What is asked: the prompt and the length of each request's answer.

In: options, or a file of prompts, or a trace. Out: :data:`Workload`: a :class:`Work` for each number of a point. A
random prompt is :class:`Piece` s, of which an engine makes token ids and a server's client words, so that prompts
that share pieces share their beginnings in both. The same seed, point and number give the same request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from llmc.runtimes.bench.load.lengths import Lengths
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.trace import BLOCK, Trace, TraceEntry
from llmc.runtimes.bench.prompts import Prompt

PREFIX, BLOCKS, REQUESTS = 1, 2, 3
"""First numbers of keys: of shared prefixes, of a trace's blocks, of what one request alone has."""


@dataclass(frozen=True)
class Piece:
    """Random tokens: the first ``length`` of those that ``key`` seeds."""

    key: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Work:
    """One request: its prompt, and how many tokens are to be written."""

    prompt: tuple[Piece, ...] | Prompt
    output: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Of a random prompt; else none."""
        return self.prompt if isinstance(self.prompt, tuple) else ()


Workload: TypeAlias = Callable[[int, int], Work]
"""Number of a point, and of a request in it -> the request."""


def random_work(options: LoadOptions) -> Workload:
    """Random tokens of the lengths that are asked for, behind a prefix that all share."""
    inputs, outputs = (
        Lengths.parse("--input-len", options.input_len),
        Lengths.parse("--output-len", options.output_len),
    )

    def work(point: int, number: int) -> Work:
        key = (REQUESTS, options.seed, point, number)
        random = np.random.default_rng(key)
        length, output = inputs.draw(random), outputs.draw(random)
        shared = min(options.shared_prefix, length - 1)
        prefix = (Piece((PREFIX, options.seed), shared),) if shared else ()
        return Work((*prefix, Piece((*key, 0), length - shared)), output)

    return work


def prompt_work(options: LoadOptions, prompts: Sequence[Prompt]) -> Workload:
    """Prompts of a file, which begins again at its end."""
    outputs = Lengths.parse("--output-len", options.output_len)

    def work(point: int, number: int) -> Work:
        random = np.random.default_rng((REQUESTS, options.seed, point, number))
        return Work(prompts[number % len(prompts)], outputs.draw(random))

    return work


def trace_work(options: LoadOptions, trace: Trace) -> Workload:
    """Requests of a trace."""

    def work(point: int, number: int) -> Work:
        entry = trace.entries[number]
        key = (REQUESTS, options.seed, point, number, 0)
        return Work(entry.prompt or _blocks(entry, key, options.seed), entry.output_length)

    return work


def _blocks(entry: TraceEntry, own: tuple[int, ...], seed: int) -> tuple[Piece, ...]:
    """The blocks that a trace names, then what it does not name."""
    pieces, left = [], entry.input_length
    for name in entry.hash_ids:
        if left > 0:
            pieces.append(Piece((BLOCKS, seed, name), min(BLOCK, left)))
            left -= BLOCK
    return (*pieces, Piece(own, left)) if left > 0 else tuple(pieces)


def random_ids(pieces: Sequence[Piece], count: int) -> list[int]:
    """Numbers below ``count`` for every token of a random prompt."""
    parts = [np.random.default_rng(piece.key).integers(0, count, piece.length) for piece in pieces]
    return [int(number) for part in parts for number in part]
