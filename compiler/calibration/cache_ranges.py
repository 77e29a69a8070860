"""How far keys and values reach on a text: what an 8-bit cache's scales are made of.

In: a float graph of a target, whose cache grows; windows of tokens. Out: the largest magnitude of each channel of the
cache, by layer. The graph is walked a layer at a time over all windows, with its own weights, so that one layer is in
memory.

A key lies in the cache as it was turned at its position, and the windows stand at the first positions: some thousand
tokens on, a channel that is turned slowly holds what its partner holds here. So each key is looked at as it would be
at positions all over the context. Where the tables of angles are not known, a channel gets the length of its pair,
which is the most that it can hold anywhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.base.progress import Progress
from llmc.compiler.calibration.journal import Journal
from llmc.compiler.calibration.steps import cut_steps
from llmc.compiler.calibration.walk import Recipe, SitePlan, Walk
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.graph.operators.microsoft import GROUP_QUERY_ATTENTION as ATTENTION
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.quantization.quantize_cache import PAST_KEY, Ranges
from llmc.passes.quantization.rotary_pairs import RotaryPairs
from llmc.passes.quantization.sites import find_sites

PLACES = 17
"""Positions of a window, from the first to the last of the context, at which its keys are looked at. Between two of
them the slow pairs turn little; the fast ones have turned round within a window."""


class _Reach:
    """The largest magnitude of each channel of values that were seen."""

    def __init__(self) -> None:
        self.largest: Array = np.zeros(0, np.float32)

    def add(self, cache: Array) -> None:
        """Look at [rows, heads, tokens, channels]."""
        largest = self._magnitudes(cache).max(axis=(0, 2)).reshape(-1).astype(np.float32)
        self.largest = np.maximum(self.largest, largest) if self.largest.size else largest

    def _magnitudes(self, cache: Array) -> Array:
        return np.abs(cache)


class _KeyReach(_Reach):
    """The largest magnitude of each channel of keys anywhere in the context."""

    def __init__(self, node: ir.Node, width: int, length: int) -> None:
        super().__init__()
        self._pairs = RotaryPairs.of(node, width)
        cosines, sines = (_table(ATTENTION.get(node, name)) for name in ("cos_cache", "sin_cache"))
        self._tables: tuple[Array, Array] | None = None
        if cosines is not None and sines is not None:
            places = np.linspace(0, max(len(cosines) - length, 0), PLACES).astype(np.int64)
            self._tables = cosines[places].astype(np.float32), sines[places].astype(np.float32)

    def _magnitudes(self, cache: Array) -> Array:
        if self._tables is None:
            return self._pairs.lengths(cache)
        magnitudes = np.abs(cache)
        for cosines, sines in zip(*self._tables, strict=True):
            np.maximum(magnitudes, np.abs(self._pairs.turn(cache, cosines, sines)), out=magnitudes)
        return magnitudes


def _table(value: ir.Value | None) -> Array | None:
    """[positions, angles], where it is a constant."""
    tensor = value.const_value if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())


def cache_ranges(model: ir.Model, windows: npt.NDArray[np.int64], threads: int, progress: Progress) -> Ranges | None:
    """Ranges of the keys and values of every GroupQueryAttention that has a cache.

    Args:
        model: All logits, a cache that grows.
        windows: Tokens, [windows, length].
        threads: That work side by side.
        progress: Told how far it is.

    Returns:
        None where no attention has a cache.

    Raises:
        EngineError, UnsupportedModelError: a part of the graph does not run here.
    """
    reaches: dict[int, tuple[_Reach, _Reach]] = {}
    watched: dict[ir.Value, Callable[[Array], None]] = {}
    for node in ATTENTION.calls(model.graph):
        past = ATTENTION.get(node, "past_key")
        key, value = (ATTENTION.result(node, name) for name in ("present_key", "present_value"))
        layer = PAST_KEY.fullmatch(past.name or "") if past is not None else None
        width = key.shape[-1] if key.shape is not None else None
        if layer is None or not isinstance(width, int):
            continue
        pair = reaches[int(layer[1])] = (_KeyReach(node, width, windows.shape[1]), _Reach())
        watched |= {value: reach.add for value, reach in zip((key, value), pair, strict=True)}
    if not reaches:
        return None
    sites = find_sites(model)
    plans = {site.node: SitePlan(None, RoundToNearest(), calibrated=False) for site in sites}
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(
            model,
            cut_steps(model.graph, sites),
            windows,
            plans,
            Recipe(),
            Journal(Path(folder)),
            dtype=np.dtype(np.float32),
            threads=threads,
            watched=watched,
        )
        walk.run(progress)
    nothing = _Reach(), _Reach()
    layers = [reaches.get(layer, nothing) for layer in range(max(reaches) + 1)]
    return [keys.largest for keys, _ in layers], [values.largest for _, values in layers]
