"""A reference whose answers can be worked out by hand, and golden data recorded from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.driver.golden_passage import Reading
from llmc.compiler.driver.golden_recording import record_golden

VOCABULARY = 300
PROMPTS = [[5, 6, 7], [250], [1, 2, 3, 4, 5]]
LAYERS, CHANNELS = 2, 6


class Reference:
    """A session whose next token depends on every token before it; from a cache it goes on with another one."""

    info = SimpleNamespace(vocab_size=VOCABULARY, max_context=1 << 20, max_batch=None, profiles=(), logits="all")
    rows = chooser = None

    def __init__(self) -> None:
        self.held: list[int] = []
        self.calls: list[list[int]] = []

    @property
    def lengths(self) -> Any:
        return np.array([len(self.held)], np.int64)

    def reset(self, batch: int, capacity: int) -> None:
        assert batch == 1
        self.held, self.capacity = [], capacity

    def forward(self, input_ids: Any, lengths: Any = None) -> Any:
        tokens = input_ids[0].tolist()
        assert input_ids.dtype == np.int64
        assert len(tokens) <= self.capacity
        values = np.stack([logits_of(tokens[: end + 1], -1.0 if self.held else 1.0) for end in range(len(tokens))])
        self.calls.append(tokens)
        self.held = self.held + tokens
        return SimpleNamespace(host=lambda: values[None])

    def logits_at(self, tokens: Any, places: Any) -> Any:
        self.held = tokens.tolist()
        self.calls.append(self.held)
        return np.stack([logits_of(self.held[:place]) for place in places])


def logits_of(tokens: list[int], sign: float = 1.0) -> Any:
    made = np.random.default_rng(tokens).standard_normal(VOCABULARY).astype(np.float32)
    return sign * 5 * made


def record() -> tuple[Golden, Reference]:
    reference: Any = Reference()
    return record_golden(reference, PROMPTS), reference


TEXT = [(7 * place) % 251 for place in range(30)]
READING = Reading(length=30, prompt=23, chunk=6)


def record_passage(reference: Any | None = None) -> Golden:
    """With a text that is read in four chunks and seven single tokens."""
    return record_golden(reference or Reference(), PROMPTS, TEXT, READING)


class CachingReference(Reference):
    """Keys of channel c reach c times the largest token of the text; values the longest text's length."""

    def __init__(self, silent: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.silent = silent

    def cache_ranges(self) -> tuple[Any, Any] | None:
        if self.calls[-1][0] in self.silent:
            return None
        channels = np.arange(LAYERS * CHANNELS, dtype=np.float32).reshape(LAYERS, CHANNELS)
        return channels * max(self.calls[-1]), np.full_like(channels, len(self.held))


def record_ranges(silent: tuple[int, ...] = ()) -> tuple[Golden, CachingReference]:
    reference: Any = CachingReference(silent)
    return record_golden(reference, PROMPTS), reference
