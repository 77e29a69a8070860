"""How far keys and values reach on a text: what an 8-bit cache's scales are made of.

In: a float graph of a target, whose cache grows; windows of tokens. Out: the least and the largest number and the
mean of each channel of the cache, and what lies in its first slot, by layer. The graph is walked a layer at a time
over all windows, with its own weights, so that one layer is in memory.

A key lies in the cache as it was turned at its position, and the windows stand at the first positions: some thousand
tokens on, a channel that is turned slowly holds what its partner holds here. So each key is looked at as it would be
at positions all over the context. Where the tables of angles are not known, a channel gets the length of its pair,
which is the most that it can hold anywhere. The first slot's key stays at its position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.progress import Progress
from llmc.compiler.calibration.float_walk import watch_floats
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION as ATTENTION
from llmc.passes.quantization.cache_numbers import Reach
from llmc.passes.quantization.cache_offsets import table_of
from llmc.passes.quantization.quantize_cache import PAST_KEY, Reaches
from llmc.passes.quantization.rotary_pairs import RotaryPairs
from llmc.passes.quantization.sites import find_sites

PLACES = 17
"""Positions of a window, from the first to the last of the context, at which its keys are looked at. Between two of
them the slow pairs turn little; the fast ones have turned round within a window."""

STAYS = 1.0
"""Radians. Measured on SmolLM2-135M in float8, about the means of all channels, of those that are turned less, and of
none: KL 0.0203, 0.0072, 0.0089."""


class _Values:
    """The least, the largest and the mean of each channel of values that were seen, and what lay in slot 0."""

    def __init__(self) -> None:
        nothing = np.zeros(0, np.float32)
        self._low = self._high = nothing
        self._sum, self._count = np.zeros(1), 0
        self._first, self._rows = np.zeros(1), 0

    def add(self, cache: Array) -> None:
        """Look at [rows, heads, tokens, channels] from slot 0 on."""
        self._see(cache[:, :, :1])
        self._first = self._first + cache[:, :, 0].sum(0, dtype=np.float64).reshape(-1)
        self._rows += len(cache)
        self._see_all(cache[:, :, 1:])

    def reach(self) -> Reach:
        """What was seen so far."""
        if not self._rows:
            return Reach(self._low, self._high, self._low, self._low)
        mean, first = (part.astype(np.float32) for part in (self._sum / self._count, self._first / self._rows))
        return Reach(self._low, self._high, mean, first)

    def _see_all(self, cache: Array) -> None:
        self._see(cache)

    def _see(self, cache: Array) -> None:
        low, high = (part(cache, axis=(0, 2)).reshape(-1).astype(np.float32) for part in (np.min, np.max))
        self._low = np.minimum(self._low, low) if self._low.size else low
        self._high = np.maximum(self._high, high) if self._high.size else high
        self._sum = self._sum + cache.sum((0, 2), dtype=np.float64).reshape(-1)
        self._count += cache.shape[0] * cache.shape[2]


class _Keys(_Values):
    """The same of keys, anywhere in the context; but that in slot 0 stays where it is."""

    def __init__(self, node: ir.Node, width: int, length: int) -> None:
        super().__init__()
        self._pairs = RotaryPairs.of(node, width)
        cosines, sines = (table_of(ATTENTION.get(node, name)) for name in ("cos_cache", "sin_cache"))
        self._tables: tuple[Array, Array] | None = None
        if cosines is not None and sines is not None:
            places = np.linspace(0, max(len(cosines) - length, 0), PLACES).astype(np.int64)
            self._tables = cosines[places].astype(np.float32), sines[places].astype(np.float32)

    def reach(self) -> Reach:
        """What was seen so far; a channel that is turned far has no mean that holds."""
        seen = super().reach()
        return replace(seen, mean=(seen.mean.reshape(-1, len(self._pairs.signs)) * self._stays()).reshape(-1))

    def _stays(self) -> Array:
        """Channels that are not turned, or by less than :data:`STAYS` over the whole context."""
        stays: Array = self._pairs.signs == 0
        if self._tables is not None:
            cosines, sines = self._tables
            nearest = (cosines / np.hypot(cosines, sines)).min(0)
            stays = stays | (nearest[self._pairs.angles] > np.cos(STAYS))
        return stays

    def _see_all(self, cache: Array) -> None:
        if self._tables is None:
            lengths = self._pairs.lengths(cache)
            self._see(lengths)
            self._see(-lengths)
            return
        self._see(cache)
        for cosines, sines in zip(*self._tables, strict=True):
            self._see(self._pairs.turn(cache, cosines, sines))


def cache_ranges(model: ir.Model, windows: npt.NDArray[np.int64], threads: int, progress: Progress) -> Reaches | None:
    """How far the keys and values of every GroupQueryAttention that has a cache go.

    Args:
        model: All logits, a cache that grows.
        windows: Tokens, [windows, length].
        threads: That work side by side.
        progress: Told how far it is.

    Returns:
        By layer of the cache, of keys and of values; None for a layer that has none, and where no attention has a
        cache.

    Raises:
        EngineError, UnsupportedModelError: a part of the graph does not run here.
    """
    reaches: dict[int, tuple[_Keys, _Values]] = {}
    watched: dict[ir.Value, Callable[[Array], None]] = {}
    for node in ATTENTION.calls(model.graph):
        past = ATTENTION.get(node, "past_key")
        key, value = (ATTENTION.result(node, name) for name in ("present_key", "present_value"))
        layer = PAST_KEY.fullmatch(past.name or "") if past is not None else None
        width = key.shape[-1] if key.shape is not None else None
        if layer is None or not isinstance(width, int):
            continue
        pair = reaches[int(layer[1])] = (_Keys(node, width, windows.shape[1]), _Values())
        watched |= {value: reach.add for value, reach in zip((key, value), pair, strict=True)}
    if not reaches:
        return None
    watch_floats(model, find_sites(model), windows, watched, threads, progress)
    seen = {layer: (keys.reach(), values.reach()) for layer, (keys, values) in reaches.items()}
    return tuple(seen.get(layer) for layer in range(max(seen) + 1))
