"""Tensors with updates that are made while they are read.

In: a weight source, and what is done to some of its tensors. Out: :class:`MergedWeights`, which reads a few rows of
the updated tensors and never holds one whole.

    w' = w + s * b @ a                                      b [out, rank], a [rank, in]
    w' = m / |w + s * b @ a| * (w + s * b @ a)              the norm of each output's weights: DoRA

A weight may be stored [in, out], as of an embedding or a Conv1D; then all of this is transposed. Sums are made in
float64 and rounded once, so that the values do not depend on how many rows are read at a time.

Source: ``get_delta_weight`` and ``merge`` in PEFT's ``tuners/lora/layer.py``, and ``tuners/lora/variants.py``.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource, row_bounds

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
_CHUNK_VALUES = 1 << 20


class Edit(ABC):
    """What is done to one tensor.

    Attributes:
        shape: Of the tensor.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def apply(self, values: Doubles, original: Doubles, start: int, stop: int) -> Doubles:
        """Rows ``start:stop`` after the edit, of the rows before it and of the ``original``'s, all float64."""


class Replacement(Edit):
    """Another tensor in its place."""

    def __init__(self, source: WeightSource, tensor: str) -> None:
        self.source, self.tensor, self.shape = source, tensor, source.tensors()[tensor].shape

    def apply(self, values: Doubles, original: Doubles, start: int, stop: int) -> Doubles:
        """The other tensor's rows."""
        return self.source.read(self.tensor, start, stop).astype(np.float64)


class Addition(Edit):
    """A vector that is added."""

    def __init__(self, vector: Array, scaling: float) -> None:
        self.shape, self._step = vector.shape, vector.astype(np.float64) * scaling

    def apply(self, values: Doubles, original: Doubles, start: int, stop: int) -> Doubles:
        """The sum."""
        total: Doubles = values + self._step[start:stop]
        return total


class LowRank(Edit):
    """A product of two narrow matrices that is added, with DoRA's magnitudes or without.

    Args:
        a: [rank, in].
        b: [out, rank].
        scaling: Of the product.
        transposed: The weight is stored [in, out].
        magnitude: [out], the norms that the outputs' weights have then; None: as they come.
    """

    def __init__(
        self, a: Array, b: Array, scaling: float, *, transposed: bool = False, magnitude: Array | None = None
    ) -> None:
        left, right = (a.T, b.T) if transposed else (b, a)
        self._left, self._right = left.astype(np.float64), right.astype(np.float64)
        self._scaling, self._transposed = scaling, transposed
        self._magnitude = None if magnitude is None else magnitude.reshape(-1).astype(np.float64)
        self._norms: Doubles | None = None
        self._lock = threading.Lock()
        self.shape = (left.shape[0], right.shape[1])

    def prepare(self, original: WeightSource, name: str) -> None:
        """Look once at the whole tensor for the norms of columns, which no row alone has."""
        if self._magnitude is None or not self._transposed:
            return
        with self._lock:
            if self._norms is None:
                squares = np.zeros(self.shape[1])
                step = max(1, _CHUNK_VALUES // max(1, self.shape[1]))
                for start in range(0, self.shape[0], step):
                    stop = min(start + step, self.shape[0])
                    rows = original.read(name, start, stop).astype(np.float64)
                    squares += np.square(rows + self._update(start, stop)).sum(0)
                self._norms = np.sqrt(squares)

    def apply(self, values: Doubles, original: Doubles, start: int, stop: int) -> Doubles:
        """The sum; with magnitudes, scaled by the norms of the update on the original, as PEFT has them."""
        update = self._update(start, stop)
        total: Doubles = values + update
        if self._magnitude is None:
            return total
        if self._transposed:
            assert self._norms is not None
            total *= self._magnitude / self._norms
            return total
        total *= (self._magnitude[start:stop] / np.linalg.norm(original + update, axis=1))[:, None]
        return total

    def _update(self, start: int, stop: int) -> Doubles:
        product: Doubles = self._left[start:stop] @ self._right * self._scaling
        return product


class MergedWeights:
    """A weight source in which some tensors have edits.

    Args:
        base: The tensors as they are.
        edits: Name of a tensor -> what is done to it, in order. One that ``base`` has not begins with a replacement.
        deep: Tensors that ``base`` is made of have edits, too.

    Attributes:
        base, edits, deep: As given.
    """

    def __init__(self, base: WeightSource, edits: Mapping[str, Sequence[Edit]], *, deep: bool = False) -> None:
        self.base, self.edits, self.deep = base, dict(edits), deep
        infos = dict(base.tensors())
        for name, steps in self.edits.items():
            shape, file = steps[-1].shape, infos[name].file if name in infos else ""
            infos[name] = TensorInfo(name, ir.DataType.FLOAT, shape, 4 * int(np.prod(shape)), file)
        self._infos = dict(sorted(infos.items()))

    @property
    def over_base(self) -> bool:
        """A model that is filled with ``base`` differs from one with these in the tensors of ``edits`` alone."""
        return not self.deep and self.edits.keys() <= self.base.tensors().keys()

    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, sorted by name; those with edits are float32."""
        return self._infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows ``start:stop`` with the edits made; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`."""
        if name not in self.edits:
            return self.base.read(name, start, stop)
        steps = self.edits[name]
        first, last = row_bounds(self._infos[name].shape, start, stop)
        values = np.zeros((last - first, *self._infos[name].shape[1:]))
        if name in self.base.tensors():
            values = self.base.read(name, first, last).astype(np.float64)
        original, origin = values, (self.base, name)
        for step in steps:
            if isinstance(step, Replacement):
                original, origin = step.apply(values, original, first, last), (step.source, step.tensor)
            if isinstance(step, LowRank):
                step.prepare(*origin)
            values = step.apply(values, original, first, last)
        return values.astype(np.float32)
