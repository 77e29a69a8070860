"""The long text of golden data: how long it is, so that what begins at a length has begun, and how it is read.

    window, original context, …          the longest of them below 4,096 tokens, T
    ├── chunk ──┼── chunk ──┼── … ──┼── the rest ──┼─ token by token ─┤
    0          37          74                   T + 24              T + 40

In: a model's configuration. Out: :class:`Reading`. At least two seams between chunks lie in it, its prompt ends
beyond T, and the single tokens lie beyond both. Chunks end at odd places, so that no seam lies where a kernel's own
blocks begin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from llmc.compiler.artifact.golden import IntArray
from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.capture.rotation_switch import text_values

LIMIT: Final = 4096
"""Lengths from here on are not passed: the reference's attention over such a text takes gigabytes a layer."""
SHORTEST: Final = 256
"""Tokens of the text where nothing begins at a greater length."""
BEYOND: Final = 40
"""Tokens behind the place where something begins."""
STEPS: Final = 16
"""Of them, those that follow one by one."""
CHUNK: Final = 37
SPARE: Final = 2
"""Positions at the end of a context that are left alone: some models' tables of positions begin at 2."""
BEGINNINGS: Final = frozenset(
    {
        "original_max_position_embeddings",
        "attention_chunk_size",
        "attention_window_size",
        "sliding_window_size",
        "window_size",
        "index_topk",
    }
)
"""Names in transformers' configurations of lengths at which something begins, beside the windows of a geometry."""


@dataclass(frozen=True)
class Reading:
    """How a text is read.

    Attributes:
        length: Tokens of the text.
        prompt: Tokens of it that are read in chunks.
        chunk: Tokens of a chunk.
        begins: Lengths at which something begins, all that are known, growing.
    """

    length: int
    prompt: int
    chunk: int
    begins: tuple[int, ...] = ()

    @property
    def places(self) -> IntArray:
        """Tokens before each prediction that is kept: ends of chunks, and all single tokens but the last."""
        ends = range(self.chunk, self.prompt, self.chunk)
        return np.asarray([*ends, *range(self.prompt, self.length)], np.int64)

    @property
    def passed(self) -> frozenset[int]:
        """Lengths at which something begins that lie within the text."""
        return frozenset(length for length in self.begins if length < self.length - 1)


def longest_reading(memory: int, geometry: ModelGeometry) -> int:
    """Tokens that a reference with eager attention reads in one forward in ``memory`` bytes, a layer at a time.

    Scores, what the mask makes of them, and their softmax are alive together, in float32.
    """
    square, linear = 3 * geometry.num_heads, 4 * geometry.hidden_size + 3 * geometry.intermediate_size
    numbers = max(0, memory // 4)
    if not square:
        return numbers // linear
    return int((math.sqrt(linear**2 + 4 * square * numbers) - linear) / (2 * square))


def plan_reading(config: Any, geometry: ModelGeometry, longest: int | None = None) -> Reading | None:
    """The text that golden data of a model need.

    Args:
        config: transformers' configuration.
        geometry: Its geometry; the text stays within its context.
        longest: Most tokens that the reference can read; None: any number.

    Returns:
        None where no text with two seams fits.
    """
    begins = tuple(sorted({*_beginnings(config), *(window for window in geometry.sliding_windows if window)}))
    wanted = max([SHORTEST, *(length + BEYOND for length in begins if length < LIMIT)])
    context = geometry.max_position_embeddings
    limits = [wanted, *([] if context is None else [context - SPARE]), *([] if longest is None else [longest])]
    length = min(limits)
    prompt = length - min(STEPS, length // 4)
    chunk = min(CHUNK, prompt // 3)
    return Reading(length, prompt, chunk, begins) if chunk > 1 else None


def _beginnings(config: Any) -> Iterator[int]:
    yield from _numbers(text_values(config))


def _numbers(value: object) -> Iterator[int]:
    """Positive lengths of :data:`BEGINNINGS`, however deep they stand: rotations may have parameters by layer."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name in BEGINNINGS and isinstance(item, int) and item > 0:
                yield item
            else:
                yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
