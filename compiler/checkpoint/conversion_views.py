"""Tensors made of parts of checkpoint tensors, read one box at a time.

In: tensors of a :class:`~llmc.compiler.checkpoint.weights.WeightSource`. Out: :class:`View`: slices, permutations,
reshapes and concatenations of them, which compose without reading anything.

A box is a range for each dimension. A view turns the box that it is asked for into boxes of the views below it, down
to rows of a stored tensor, so that one expert of a stack, or a few heads of a fused projection, is read alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from llmc.compiler.checkpoint.weights import TensorInfo, WeightSource

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int], ...]
"""First and one-past-last index for each dimension."""

BLOCK_BYTES = 8 << 20
"""Most bytes of a stored tensor that are in memory while columns are taken out of it."""


class View(ABC):
    """A tensor that is read by boxes.

    Attributes:
        shape: Its dimensions.
        dtype: Type of the values that ``read`` returns.
        bases: The views that it takes values from.
    """

    def __init__(self, shape: Sequence[int], dtype: ir.DataType, *bases: View) -> None:
        self.shape, self.dtype, self.bases = tuple(shape), dtype, bases

    @abstractmethod
    def read(self, box: Box) -> Array:
        """The values of ``box``, which lies inside the shape; an array of the box's size."""

    def stored(self) -> Iterator[TensorInfo]:
        """The checkpoint tensors that it takes values from."""
        for base in self.bases:
            yield from base.stored()


class Stored(View):
    """A tensor of the checkpoint."""

    def __init__(self, source: WeightSource, info: TensorInfo) -> None:
        super().__init__(info.shape, info.dtype)
        self.source, self.info = source, info

    def read(self, box: Box) -> Array:
        """Rows of the tensor; for a box that is narrower than a row, a block of rows at a time."""
        if not box:
            return self.source.read(self.info.name).reshape(())
        (first, last), inner = box[0], tuple(slice(*bounds) for bounds in box[1:])
        if box[1:] == tuple((0, size) for size in self.shape[1:]):
            return self.source.read(self.info.name, first, last)
        out = np.empty([stop - start for start, stop in box], self.dtype.numpy())
        row_bytes = max(1, math.prod(self.shape[1:]) * out.itemsize)
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(first, last, step):
            stop = min(start + step, last)
            out[start - first : stop - first] = self.source.read(self.info.name, start, stop)[:, *inner]
        return out

    def stored(self) -> Iterator[TensorInfo]:
        """Itself."""
        yield self.info


class Sliced(View):
    """``length`` indices of one dimension, from ``start`` on, every ``step``-th."""

    def __init__(self, base: View, dim: int, start: int, length: int, step: int = 1) -> None:
        super().__init__((*base.shape[:dim], length, *base.shape[dim + 1 :]), base.dtype, base)
        self.base, self.dim, self.start, self.step = base, dim, start, step

    def read(self, box: Box) -> Array:
        """The box, moved; with steps, what lies between is read, too."""
        low, high = box[self.dim]
        first = self.start + low * self.step
        last = first + (high - low - 1) * self.step
        bounds = (first, last + 1) if high > low else (first, first)
        values = self.base.read((*box[: self.dim], bounds, *box[self.dim + 1 :]))
        return values[(*[slice(None)] * self.dim, slice(None, None, self.step))]


class Permuted(View):
    """Dimensions in another order, as ``numpy.transpose`` takes it."""

    def __init__(self, base: View, order: Sequence[int]) -> None:
        super().__init__([base.shape[d] for d in order], base.dtype, base)
        self.base, self.order = base, tuple(order)

    def read(self, box: Box) -> Array:
        """The permuted box of the base."""
        bounds = dict(zip(self.order, box, strict=True))
        return self.base.read(tuple(bounds[d] for d in range(len(box)))).transpose(self.order)


class Joined(View):
    """Tensors one after the other along a dimension; of different float types: as float32."""

    def __init__(self, parts: Sequence[View], dim: int) -> None:
        first = parts[0]
        size = sum(part.shape[dim] for part in parts)
        dtype = first.dtype if len({part.dtype for part in parts}) == 1 else ir.DataType.FLOAT
        super().__init__((*first.shape[:dim], size, *first.shape[dim + 1 :]), dtype, *parts)
        self.dim = dim

    def read(self, box: Box) -> Array:
        """What the parts have of the box; the others are not read."""
        low, high = box[self.dim]
        pieces: list[Array] = []
        base = 0
        for part in self.bases:
            size = part.shape[self.dim]
            start, stop = max(low - base, 0), min(high - base, size)
            if start < stop:
                piece = part.read((*box[: self.dim], (start, stop), *box[self.dim + 1 :]))
                pieces.append(piece.astype(self.dtype.numpy(), copy=False))
            base += size
        if not pieces:
            return np.empty([stop - start for start, stop in box], self.dtype.numpy())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=self.dim)


class Filled(View):
    """``base`` with one value in rows ``start:stop`` of the first dimension."""

    def __init__(self, base: View, start: int, stop: int, value: float) -> None:
        super().__init__(base.shape, base.dtype, base)
        self.base, self.start, self.stop, self.value = base, start, stop, value

    def read(self, box: Box) -> Array:
        """The base's values, some of them replaced."""
        values = self.base.read(box)
        first, last = box[0]
        values[max(self.start - first, 0) : max(min(self.stop, last) - first, 0)] = self.value
        return values


class Reshaped(View):
    """The same values in row-major order, in another shape.

    Dimensions are taken in groups of equal size before and after: [heads · width, in] as [heads, width, in] is the
    groups (heads · width → heads, width) and (in → in), and a box is a range of each.
    """

    def __init__(self, base: View, shape: Sequence[int]) -> None:
        super().__init__(shape, base.dtype, base)
        self.base = base
        self._groups = _groups(base.shape, self.shape)

    def read(self, box: Box) -> Array:
        """The smallest box of the base that has all the values, and those values of it."""
        sizes = [stop - start for start, stop in box]
        if 0 in sizes:
            return np.empty(sizes, self.dtype.numpy())
        below: list[tuple[int, int]] = []
        wanted: list[slice | Array] = []
        for before, after in self._groups:
            bounds, indices = _range_of_group(
                [self.base.shape[d] for d in before], [self.shape[d] for d in after], [box[d] for d in after]
            )
            below += bounds
            wanted.append(indices)
        values = self.base.read(tuple(below))
        edges = np.cumsum([0, *(len(before) for before, _ in self._groups)])
        flat = values.reshape([math.prod(values.shape[a:b]) for a, b in pairwise(edges)])
        for axis, indices in enumerate(wanted):
            flat = flat[(*[slice(None)] * axis, indices)]
        return flat.reshape(sizes)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions of both shapes in the finest groups of equal size, in order."""
    if 0 in before:
        return [(list(range(len(before))), list(range(len(after))))]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [*range(i, min(i + 1, len(before)))], [*range(j, min(j + 1, len(after)))]
        while (sizes := (math.prod(before[d] for d in left), math.prod(after[d] for d in right)))[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                left.append(i + len(left))
            else:
                right.append(j + len(right))
        i, j = i + len(left), j + len(right)
        groups.append((left, right))
    return groups


def _range_of_group(
    before: Sequence[int], after: Sequence[int], box: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], slice | Array]:
    """A box of ``before`` that holds ``box`` of ``after``, and where in the flattened box its values are."""
    low = np.ravel_multi_index([start for start, _ in box], after)
    high = np.ravel_multi_index([stop - 1 for _, stop in box], after)
    first, last = (tuple(map(int, np.unravel_index(end, before))) for end in (low, high))
    split = next((d for d in range(len(before)) if first[d] != last[d]), len(before))
    # Beyond the first dimension in which the ends differ, the box is whole, and so is one range of flat indices.
    bounds = [(a, b + 1) if d <= split else (0, before[d]) for d, (a, b) in enumerate(zip(first, last, strict=True))]
    base = np.ravel_multi_index([start for start, _ in bounds], before)
    if high - low + 1 == math.prod(stop - start for start, stop in box):
        return bounds, slice(low - base, high - base + 1)
    grid = np.ravel_multi_index(np.ix_(*(np.arange(start, stop) for start, stop in box)), after)
    return bounds, grid.reshape(-1) - base
