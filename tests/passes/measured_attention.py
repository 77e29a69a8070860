"""Attention in NumPy that can be measured as if it had been cut out of a graph, and may be wrong in any way.

In: what it does. Out: an object with the ``site``, ``lengths`` and ``run`` of an ``ExtractedAttention``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmc.passes.attention.measure_attention import AttentionFacts, measure
from llmc.passes.graph_pass import NearMiss

from .graphs import Array


def same(array: Array) -> Array:
    return array


@dataclass
class NumpyAttention:
    """Softmax(scale x q · k - slope x distance) · v in float32, causal and in a window.

    Attributes:
        scale: A number, or a function of the lengths of past and chunk.
        window: Tokens that are seen, itself included; 0: all.
        slopes: One per head; empty: none.
        scores, weights, values: What is done to them on the way.
        added: What is added to scores, by the distance [seq, total]; NumPy broadcasts it to [.., heads, seq, total].
        longest: Of more tokens it cannot be asked.
        named: Lengths that its constants name.
    """

    scale: float | Callable[[int, int], float] = 0.3
    window: int = 0
    slopes: Sequence[float] = ()
    scores: Callable[[Array], Array] = same
    weights: Callable[[Array], Array] = same
    values: Callable[[Array], Array] = same
    added: Callable[[Array], Array] | None = None
    heads: int = 2
    kv_heads: int = 2
    dim: int = 16
    longest: int = 1 << 20
    named: Sequence[int] = ()
    asked: list[int] = field(default_factory=list)

    @property
    def site(self) -> Any:
        query = SimpleNamespace(count=self.heads)
        return SimpleNamespace(query=query, kv_heads=self.kv_heads, key_dim=self.dim, value_dim=self.dim)

    def lengths(self) -> set[int]:
        return set(self.named)

    def run(self, query: Array, key: Array, value: Array, mask: Array) -> Array:
        seq, total = query.shape[2], key.shape[2]
        self.asked.append(total)
        if total > self.longest:
            raise NearMiss(f"it takes {self.longest} tokens and not {total}")
        scale = self.scale(total - seq, seq) if callable(self.scale) else self.scale
        group = self.heads // self.kv_heads
        keys, values = (np.repeat(x, group, axis=1) for x in (key, self.values(value)))
        scores = self.scores(query @ keys.swapaxes(2, 3) * np.float32(scale))
        distance = np.arange(total - seq, total)[:, None] - np.arange(total)
        if self.slopes:
            scores = scores - np.asarray(self.slopes, np.float32)[:, None, None] * distance.astype(np.float32)
        if self.added is not None:
            scores = scores + self.added(distance).astype(np.float32)
        seen = (distance >= 0) & (distance < (self.window or total))
        scores = np.where(seen, scores, np.float32(-np.inf)).astype(np.float32)
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = self.weights(exponentials / exponentials.sum(axis=-1, keepdims=True))
        result: Array = (weights @ values).astype(np.float64)
        return result

    def measure(self) -> AttentionFacts:
        return measure(self)  # type: ignore[arg-type]
