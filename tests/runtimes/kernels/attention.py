"""llmc.cpu::GroupQueryAttention: one node, its cache, and what it computes in float64.

Unless a test rotates them, queries and keys are small integers over 8, whose scores float32 holds exactly, and values
are positive: what is compared is the softmax, without the excuse of a score's rounding or of cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

from .operators import GUARD, UNTOUCHED, Array, Node, guarded

INPUTS = ["q", "k", "v", "past_k", "past_v", "seqlens", "chunk", "cos", "sin"]
RANKS = {"q": 3, "k": 3, "v": 3, "past_k": 4, "past_v": 4, "seqlens": 1, "chunk": 1, "cos": 2, "sin": 2}


@dataclass(frozen=True)
class Geometry:
    """Of a layer.

    Attributes:
        window: Slots that a token sees, itself included; 0: all.
        packed: Queries, keys and values are one input.
        apart: Queries and keys are one input, values another.
        lengths: The operator has the input that says how many tokens of a row are valid.
    """

    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    scale: float = 0.25
    window: int = 0
    packed: bool = False
    apart: bool = False
    rotary: bool = False
    lengths: bool = True
    threads: int = 1

    def node(self, **changes: Any) -> Node:
        """The session; ``changes`` are other attributes or, where None, absent ones, and ``ranks``."""
        absent = {
            *(("k", "v") if self.packed else ("k",) if self.apart else ()),
            *(() if self.rotary else ("cos", "sin")),
            *(() if self.lengths else ("chunk",)),
        }
        attributes: dict[str, Any] = {
            "num_heads": self.heads,
            "kv_num_heads": self.kv_heads,
            "scale": self.scale,
            "local_window_size": self.window,
        }
        ranks = {**RANKS, **changes.pop("ranks", {})}
        attributes.update(changes)
        return Node(
            "GroupQueryAttention",
            [name if name not in absent else "" for name in INPUTS],
            ["y", "pk", "pv"],
            ranks=ranks,
            types={"seqlens": TensorProto.INT32, "chunk": TensorProto.INT32},
            threads=self.threads,
            **{name: value for name, value in attributes.items() if value is not None},
        )

    def draw(self, generator: np.random.Generator, batch: int, seq: int) -> dict[str, Array]:
        """Queries, keys and values of one chunk, [b, s, heads, dim] each."""
        shapes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        made = {
            name: (generator.integers(-16, 17, size=(batch, seq, heads, self.dim)) / 8).astype(np.float32)
            for name, heads in shapes.items()
        }
        made["v"] = np.abs(made["v"]) + generator.uniform(0.5, 1, size=made["v"].shape).astype(np.float32)
        return made


@dataclass
class Cache:
    """A session with its cache, and the same in float64; every slot that nothing was appended to is NaN."""

    geometry: Geometry
    batch: int
    capacity: int
    shared: bool = True
    cos: Array | None = None
    sin: Array | None = None
    held: Array = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is held yet."""
        shape = (self.batch, self.geometry.kv_heads, self.capacity, self.geometry.dim)
        self.node = self.geometry.node()
        self.buffers = {name: guarded(shape) for name in ("k", "v")}
        self.exact = {name: np.full(shape, np.nan) for name in ("k", "v")}
        self.held = np.zeros(self.batch, np.int64)

    def step(self, parts: dict[str, Array], counts: Sequence[int]) -> Array:
        """The operator's first output after the valid tokens of each row were appended."""
        g, seq = self.geometry, parts["q"].shape[1]
        flat = {name: part.reshape(self.batch, seq, part.shape[2] * g.dim) for name, part in parts.items()}
        if g.packed:
            flat = {"q": np.concatenate([flat["q"], flat["k"], flat["v"]], axis=2)}
        elif g.apart:
            flat = {"q": np.concatenate([flat["q"], flat["k"]], axis=2), "v": flat["v"]}
        self.held = self.held + np.asarray(counts)
        feeds = {
            **{name: np.ascontiguousarray(part) for name, part in flat.items()},
            "seqlens": (self.held - 1).astype(np.int32),
            "chunk": np.asarray(counts, np.int32),
            **{f"past_{name}": view for name, (_, view) in self.buffers.items()},
        }
        if self.cos is not None and self.sin is not None:
            feeds.update(cos=self.cos, sin=self.sin)
        present = self.buffers if self.shared else {name: guarded(self.exact[name].shape) for name in ("k", "v")}
        result = guarded((self.batch, seq, g.heads * g.dim))
        before = {name: view.copy() for name, (_, view) in self.buffers.items()}
        outputs = {"y": result, "pk": present["k"], "pv": present["v"]}
        self.node.run_into(feeds, outputs)
        for name, (buffer, _) in outputs.items():
            assert (buffer[-GUARD:] == UNTOUCHED).all(), f"written behind {name}"
        if not self.shared:
            for name, (_, view) in self.buffers.items():
                np.testing.assert_array_equal(view, before[name], "the past was written to")
        self.buffers = present
        return result[1].reshape(self.batch, seq, g.heads, g.dim)

    def hold(self, parts: dict[str, Array]) -> None:
        """Put keys and values of as many tokens into each row, without the operator."""
        for name in ("k", "v"):
            slots = np.swapaxes(parts[name], 1, 2)
            self.buffers[name][1][:, :, : slots.shape[2]] = slots
            self.exact[name][:, :, : slots.shape[2]] = slots
        self.held[:] = parts["k"].shape[1]

    def expected(self, parts: dict[str, Array], counts: Sequence[int]) -> Array:
        """What :meth:`step` has to give, [b, s, heads, dim]; called after it, with the same."""
        g, made = self.geometry, np.zeros(parts["q"].shape)
        for b, count in enumerate(counts):
            first = int(self.held[b]) - count
            slots = np.arange(first, first + count)
            q, k, v = (parts[name][b, :count].astype(np.float64) for name in ("q", "k", "v"))
            if self.cos is not None and self.sin is not None:
                q, k = (rotated(x, self.cos[slots], self.sin[slots]) for x in (q, k))
            self.exact["k"][b, :, slots], self.exact["v"][b, :, slots] = k, v
            keys, values = (
                self.exact[name][b, :, : first + count].repeat(g.heads // g.kv_heads, axis=0) for name in ("k", "v")
            )
            scores = np.einsum("shd,htd->hst", q, keys) * g.scale
            past = slots[:, None] - np.arange(first + count)
            seen = (past >= 0) & ((past < g.window) | (g.window == 0))
            scores = np.where(seen, scores, -np.inf)
            if count:
                weights = np.exp(scores - scores.max(axis=2, keepdims=True))
                weights /= weights.sum(axis=2, keepdims=True)
                made[b, :count] = np.einsum("hst,htd->shd", weights, np.where(np.isnan(values), 0, values))
        return made


def rotated(x: Array, cosine: Array, sine: Array) -> Array:
    """x [s, heads, dim], its halves rotated by the angles [s, dim / 2], in float64."""
    a, b = np.split(x, 2, axis=2)
    c, s = (part.astype(np.float64)[:, None] for part in (cosine, sine))
    return np.concatenate([a * c - b * s, b * c + a * s], axis=2)
