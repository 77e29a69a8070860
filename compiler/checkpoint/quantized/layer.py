"""A weight that a checkpoint holds in parts: numbers, scales, and what else its producer stores.

In: names of tensors of a checkpoint. Out: :class:`QuantizedLayer`, which reads a few rows of them and says what
floats they stand for.

Values are those of the producer's formula computed in float32: ``(level - zero point) * scale`` and its like, as the
producer's own library gives them for a model in float32.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.conversion_views import Stored
from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]
_SLAB_BYTES, _SLABS = 16 << 20, 4
"""Of columns that are kept for the rows that come next; how many such, as several weights are read at once."""


class Parts:
    """The stored tensors of a checkpoint, by rows and by columns.

    Args:
        source: The tensors as they are in the files.
        metadata: What the files say beside their tensors.
    """

    def __init__(self, source: WeightSource, metadata: Mapping[str, str] | None = None) -> None:
        self.source, self.infos, self.metadata = source, source.tensors(), metadata or {}
        self._slabs: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._lock = threading.Lock()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor.

        Raises:
            CheckpointError: the checkpoint lacks it.
        """
        return self._info(name).shape

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Rows of a tensor, all by default; see :class:`~llmc.compiler.checkpoint.weights.WeightSource`."""
        self._info(name)
        return self.source.read(name, start, stop)

    def columns(self, name: str, start: int, stop: int) -> Array:
        """Columns of a matrix [k, n] as rows, [stop - start, k].

        A file has to be read in whole rows to give columns, so those beside them are kept for the next call, as many
        as fit into a few MiB.
        """
        info = self._info(name)
        height, width = info.shape
        step = max(1, _SLAB_BYTES // max(1, height * info.dtype.numpy().itemsize))
        pieces = []
        for number in range(start // step, -(-stop // step)):
            first = number * step
            slab = self._slab(name, number, (first, min(first + step, width)))
            pieces.append(slab[max(start - first, 0) : stop - first])
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty((0, height), info.dtype.numpy()), *pieces])

    def _slab(self, name: str, number: int, columns: tuple[int, int]) -> Array:
        key = (name, number)
        with self._lock:
            if (slab := self._slabs.get(key)) is not None:
                self._slabs.move_to_end(key)
                return slab
        info = self.infos[name]
        slab = np.ascontiguousarray(Stored(self.source, info).read(((0, info.shape[0]), columns)).T)
        with self._lock:
            self._slabs[key] = slab
            while len(self._slabs) > _SLABS:
                self._slabs.popitem(last=False)
        return slab

    def _info(self, name: str) -> TensorInfo:
        if name not in self.infos:
            raise CheckpointError(
                f"{name} is not in the checkpoint, whose other parts of that weight are; fetch the checkpoint again."
            )
        return self.infos[name]


class QuantizedLayer(ABC):
    """One weight of a model in a producer's format.

    Attributes:
        name: Of the parameter that it stands for.
        shape: Of the parameter.
        format: In words, as ``GPTQ int4, groups of 128``.
        parts: Names of the stored tensors that it is made of, or that belong to it.
    """

    def __init__(self, name: str, shape: Sequence[int], format: str, parts: Sequence[str]) -> None:
        self.name, self.shape, self.format, self.parts = name, tuple(shape), format, tuple(parts)

    @abstractmethod
    def rows(self, start: int, stop: int) -> FloatArray:
        """Rows ``start:stop`` of the first axis as the floats that they stand for."""


def affine(levels: Array, scales: Array, zeros: Array | None, groups: Array | int) -> FloatArray:
    """``(levels - zeros) * scales``.

    Args:
        levels: [n, k] integers.
        scales: [n, g] floats.
        zeros: [n, g] integers or floats; None: nothing is subtracted.
        groups: Of each of ``k`` features its group, or how many consecutive features one has.
    """
    values = levels.astype(np.float32)
    if zeros is not None:
        values -= _spread(zeros.astype(np.float32), groups, values.shape[1])
    values *= _spread(scales.astype(np.float32), groups, values.shape[1])
    return values


def _spread(values: FloatArray, groups: Array | int, count: int) -> FloatArray:
    if not isinstance(groups, int):
        return values[:, groups]
    return values if values.shape[1] == 1 else np.repeat(values, groups, axis=1)[:, :count]


def scale_rows(parts: Parts, name: str, shape: Sequence[int], block: Sequence[int], start: int, stop: int) -> Array:
    """A scale for each value of rows ``start:stop`` of a matrix, where a block of it shares one.

    Args:
        parts: The checkpoint's tensors.
        name: Of the scales, [rows / block, columns / block] or any shape with as many values.
        shape: Of the matrix.
        block: Rows and columns of a block.
        start: First row.
        stop: One past the last.

    Returns:
        float32, [stop - start, columns], or [stop - start, 1] where all columns share scales.
    """
    (height, width), (tall, wide) = shape, block
    count = -(-width // wide)
    if math.prod(parts.shape(name)) != -(-height // tall) * count:
        raise CheckpointError(
            f"{name} has the shape {list(parts.shape(name))}, which does not belong to a matrix {list(shape)} in "
            f"blocks of {tall} x {wide}; check that config.json and the weights belong together."
        )
    first, last = start // tall, -(-stop // tall)
    by_row = bool(parts.shape(name)) and parts.shape(name)[0] == -(-height // tall)
    stored = parts.rows(name, first, last) if by_row else parts.rows(name).reshape(-1, count)[first:last]
    values = scale_values(stored.reshape(-1, count))
    values = np.repeat(values, tall, axis=0)[start - first * tall : stop - first * tall]
    return values if count == 1 else np.repeat(values, wide, axis=1)[:, :width]


def scale_values(stored: Array) -> FloatArray:
    """Scales as floats; bytes are exponents of two with 127 added (E8M0)."""
    if stored.dtype != np.uint8:
        return stored.astype(np.float32)
    return np.ldexp(np.float32(1), stored.astype(np.int32) - 127)


def endings(infos: Mapping[str, TensorInfo], ending: str) -> list[str]:
    """What stands before ``ending`` in the names of tensors that end so."""
    return [name.removesuffix(ending) for name in infos if name.endswith(ending)]
